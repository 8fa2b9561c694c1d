"""Why objects were missed and alarms false: error types, causes, oracles, and the page that shows them."""
