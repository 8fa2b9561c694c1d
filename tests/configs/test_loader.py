"""The loader: what it accepts, and that every refusal names file, line, path and remedy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from configs.loader import ConfigError, dump_config, load_config, parse_as, parse_config
from configs.schema import D3QConfig, require
from configs.tree import MAX_BYTES

BASE = """\
model:
  detector: dino
  num_classes: 8
  backbone: {name: resnet50}
criterion:
  box_distance: l1
  decoder: {classification: focal, class_cost: 2, class_weight: 1, box_weight: 5}
  encoder: {classification: focal, class_cost: 2, class_weight: 1, box_weight: 5}
data:
  root: data
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}
"""


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int
    share: float = 0.5

    def __post_init__(self) -> None:
        require(self.size > 0, "size", f"must be > 0, got {self.size}")


@dataclass(frozen=True, kw_only=True)
class Outer:
    flag: bool = False
    name: str = "x"
    title: str | None = None
    limit: int | None = None
    rate: float = 0.1
    mode: Literal["fast", "slow"] = "fast"
    sides: tuple[int, int] = (1, 2)
    drops: tuple[float, ...] = ()
    names: tuple[str, ...] | None = None
    inner: Inner = Inner(size=1)
    extra: Inner | None = None

    def __post_init__(self) -> None:
        require(self.inner.size < 100, "inner.size", f"must be < 100, got {self.inner.size}")


def outer(text: str, *overrides: str) -> Outer:
    return parse_as(Outer, text, "x.yaml", overrides)


def problems(text: str, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        outer(text, *overrides)
    assert str(caught.value).startswith(caught.value.problems[0])
    return caught.value.problems


def write(folder: Path, **files: str) -> Path:
    """Files of these names with .yaml; the path of the first."""
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(files))}.yaml"


# ---- values


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "1E-4", "0.0001", ".0001", "+1e-4", "100.e-6"])
def test_every_way_to_write_a_float(text: str) -> None:
    assert outer(f"rate: {text}").rate == 1e-4


def test_an_integer_is_a_float_but_not_the_reverse() -> None:
    assert type(outer("rate: 3").rate) is float
    assert problems("limit: 3.0") == ("x.yaml:1: limit: expected an integer, got 3.0",)
    assert problems("limit: 1e3") == ("x.yaml:1: limit: expected an integer, got 1000.0",)


def test_every_field_type() -> None:
    text = """
flag: true
name: "yes"
title: null
limit: -7
mode: slow
sides: [3, 4]
drops: [1, 2.5, 1e2]
names:
  - a
  - 'b, c'
inner: {size: 2}
extra:
  size: 3
  share: 1
"""
    assert outer(text) == Outer(
        flag=True,
        name="yes",
        limit=-7,
        mode="slow",
        sides=(3, 4),
        drops=(1.0, 2.5, 100.0),
        names=("a", "b, c"),
        inner=Inner(size=2),
        extra=Inner(size=3, share=1.0),
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n{}", "{}", "\ufeffflag: false"])
def test_no_keys_are_all_defaults(text: str) -> None:
    assert outer(text) == Outer()


@pytest.mark.parametrize("text", ["null", "~", ""])
def test_null_is_for_optional_keys_only(text: str) -> None:
    assert outer(f"limit: {text}\nextra: {text}") == Outer()
    assert problems(f"rate: {text}") == ("x.yaml:1: rate: expected a number, got null",)
    assert problems(f"inner: {text}") == ("x.yaml:1: inner: expected a block of keys, got null",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("limit: true", "limit: expected an integer, got true"),
        ("rate: true", "rate: expected a number, got true"),
        ("flag: 1", "flag: expected true or false, got 1"),
        ("flag: 'true'", "flag: expected true or false, got 'true'"),
        ("name: 5", "name: expected text, got 5; put it in quotes"),
        ("name: 1e5", "name: expected text, got 100000.0; put it in quotes"),
        ("name: false", "name: expected text, got false; put it in quotes"),
        ("name: [a]", "name: expected text, got a list"),
        ("rate: nan", "rate: expected a number, got 'nan'"),
        ("rate: 1e999", "rate: expected a number, got '1e999'"),
        ("rate: 1,5", "rate: expected a number, got '1,5'"),
        ("limit: 99999999999999999999", "limit: expected an integer, got '99999999999999999999'"),
        ("sides: 5", "sides: expected a list in [], got 5"),
        ("sides: [1, 2, 3]", "sides: expected a list of 2, got one of 3"),
        ("sides: [1, b]", "sides[1]: expected an integer, got 'b'"),
        ("drops: [1, [2]]", "drops[1]: expected a number, got a list"),
        ("mode: slwo", "mode: expected one of fast, slow; got 'slwo'; did you mean 'slow'?"),
        ("mode: 3", "mode: expected one of fast, slow; got 3"),
        ("inner: 3", "inner: expected a block of keys, got 3"),
        ("inner: [size]", "inner: expected a block of keys, got a list"),
        ("rate: {size: 1}", "rate: expected a number, got a block of keys"),
        ("inner: {}", "inner: missing key 'size'"),
        ("inner: {size: 0}", "inner.size: must be > 0, got 0"),
        ("inner: {size: 100}", "inner.size: must be < 100, got 100"),
        ("extra: {size: 1, siez: 2}", "extra: unknown key 'siez'; did you mean 'size'?"),
        ("ekstra: 1", "top level: unknown key 'ekstra'; did you mean 'extra'?"),
        ("share: 1", "top level: unknown key 'share'; did you mean 'inner.share'?"),
        ("qqqq: 1", "top level: unknown key 'qqqq'"),
    ],
)
def test_wrong_values(text: str, message: str) -> None:
    assert problems(f"# line 1\n\n{text}") == (f"x.yaml:3: {message}",)


@pytest.mark.parametrize("value", ["yes", "no", "On", "OFF", "True", "FALSE", "Null"])
def test_only_true_and_false_are_booleans(value: str) -> None:
    (found,) = problems(f"flag: {value}")
    assert found.startswith(f"x.yaml:1: flag: '{value}' is ambiguous: write")
    assert outer(f"name: '{value}'").name == value


@pytest.mark.parametrize(
    "value",
    ["010", "-012", "01.5", "00", "01e5", "1:30", "1:30:00.5", "0x1F", "0o17", "0b11", "1_000", ".inf", "-.NaN"],
)
@pytest.mark.parametrize("key", ["limit", "rate", "name"])
def test_number_lookalikes_are_refused_everywhere(key: str, value: str) -> None:
    (found,) = problems(f"inner:\n  size: 1\n{key}: {value}")
    assert found.startswith(f"x.yaml:3: {key}: '{value}' is ambiguous: ")


def test_text_that_only_resembles_numbers_is_text() -> None:
    for text in ("2026-11-22", "1.2.3", "v1", "a:b", "e5", "1e", "0755x", "https://x:80/y"):
        assert outer(f"name: {text}").name == text


# ---- places


def test_all_problems_are_collected_with_their_lines() -> None:
    text = """\
inner:
  size: 0
  share: much
sides: [1,
  two]
drops:
  - 1
  - x
fast: 1
"""
    assert problems(text) == (
        "x.yaml:9: top level: unknown key 'fast'",
        "x.yaml:5: sides[1]: expected an integer, got 'two'",
        "x.yaml:8: drops[1]: expected a number, got 'x'",
        "x.yaml:3: inner.share: expected a number, got 'much'",
    )


def test_the_message_stops_after_twenty_problems() -> None:
    with pytest.raises(ConfigError) as caught:
        outer("\n".join(f"key{i}: 1" for i in range(100)))
    assert len(caught.value.problems) == 100
    assert len(str(caught.value).splitlines()) == 21
    assert str(caught.value).endswith("... and 80 more")


def test_duplicate_keys() -> None:
    assert problems("rate: 1\nname: x\nrate: 2") == ("x.yaml:3: top level: duplicate key 'rate'; see x.yaml:1",)
    assert problems("inner: {size: 1, 'size': 2}") == ("x.yaml:1: inner: duplicate key 'size'; see x.yaml:1",)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("rate: 1\n  name: x", 2, "cannot be read: mapping values are not allowed here"),
        ("rate: 1\n\tname: x", 2, "cannot be read: found character '\\t' that cannot start any token"),
        ("rate: 1\ndrops: [1, 2", 2, "cannot be read: expected ',' or ']'"),
        ("name: 'x", 1, "cannot be read: found unexpected end of stream"),
        ("rate: 1\n---\nrate: 2", 2, "cannot be read: but found another document"),
        ("rate: 1\nname: a\x07b", 2, "cannot be read: a control character"),
        ('rate: 1\nname: "\\U00FFFFFF"', 2, "cannot be read: an escape or directive out of range"),
        ("rate: &a 1\nlimit: *a", 1, "cannot be read: anchors and aliases are not allowed; use a fragment"),
        ("rate: 1\nlimit: *a", 2, "cannot be read: anchors and aliases are not allowed; use a fragment"),
        ("rate: 1\nname: !!python/object/apply:os.getcwd []", 2, "cannot be read: tags are not allowed"),
        ("rate: !!float 1", 1, "cannot be read: tags are not allowed"),
        ("drops: " + "[" * 5000, 1, "cannot be read: nested deeper than 20 levels"),
        ("drops:\n" + "- " * 5000, 2, "cannot be read: nested deeper than 20 levels"),
        ("- a\n- b", 1, "top level: expected a block of keys, got a list"),
        ("just words", 1, "top level: expected a block of keys, got 'just words'"),
        ("? [a, b]\n: 1", 1, "top level: a key must be a name, not a list or block"),
        ("rate: 1\n<<: {name: x}", 2, "top level: unknown key '<<'"),
        ("include: [a.yaml]", 1, "include: not allowed in a resolved configuration"),
    ],
)
def test_text_that_is_no_configuration(text: str, line: int, message: str) -> None:
    (found,) = problems(text)
    assert found.startswith(f"x.yaml:{line}: {message}")


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a: &a [x, x]\n" + "\n".join(f"{chr(98 + i)}: [*{chr(97 + i)}, *{chr(97 + i)}]" for i in range(20))
    assert "anchors and aliases" in problems(bomb)[0]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        return str(caught.value)

    path = write(tmp_path, dino_d3q=BASE)
    assert message(tmp_path / "dino_d3.yaml").endswith("no such file; did you mean 'dino_d3q.yaml'?")
    assert message(tmp_path / "nowhere" / "x.yaml").endswith("x.yaml: no such file")
    assert message(tmp_path).endswith(": cannot be read: Is a directory")
    path.write_bytes(b"data:\n  root: \xff\n")
    assert message(path) == f"{path}:2: not UTF-8 text"
    path.write_bytes(b"#" * (MAX_BYTES + 1))
    assert message(path) == f"{path}: larger than {MAX_BYTES} bytes; is it a configuration?"
    with pytest.raises(ConfigError, match=r"checkpoint: larger than"):
        parse_config("#" * (MAX_BYTES + 1), "checkpoint")


# ---- overrides


def test_overrides_replace_in_order() -> None:
    found = outer("rate: 1\nextra: {size: 5}", "rate=1e-3", "sides=[5, 6]", "extra=null", "rate = 2e-3", "name=a=b")
    assert found == Outer(rate=2e-3, sides=(5, 6), name="a=b")


def test_an_override_makes_a_block_that_is_null() -> None:
    assert outer("extra: null", "extra.size=4").extra == Inner(size=4)
    assert outer("", "extra.size=4", "extra.share=1").extra == Inner(size=4, share=1.0)
    assert outer("extra: {size: 4}", "extra={share: 1}").extra == Inner(size=4, share=1.0)
    assert problems("", "extra.share=1") == ("--set extra.share: extra: missing key 'size'",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.siez=3", "--set inner.siez: inner: unknown key 'siez'; did you mean 'size'?"),
        ("iner.size=3", "--set iner.size: top level: unknown key 'iner'; did you mean 'inner'?"),
        ("share=3", "--set share: top level: unknown key 'share'; did you mean 'inner.share'?"),
        ("inner.size=0", "--set inner.size: inner.size: must be > 0, got 0"),
        ("inner.size=1e0", "--set inner.size: inner.size: expected an integer, got 1.0"),
        ("rate.x=3", "--set rate.x: rate: expected a number, got a block of keys"),
        ("sides.0=3", "--set sides.0: sides: expected a list in [], got a block of keys"),
        ("flag=yes", "--set flag: flag: 'yes' is ambiguous: write true or false"),
        ("sides=[1, 0x2]", "--set sides: sides[1]: '0x2' is ambiguous: write it in decimal"),
        ("limit=010", "--set limit: limit: '010' is ambiguous: write it without leading zeros"),
        ("sides=[1, 2", "--set sides: cannot be read: expected ',' or ']'"),
        ("rate=a: b: c", "--set rate: cannot be read: mapping values are not allowed here"),
        ("limit=3 #x", "--set limit: cannot be read: # would start a comment; remove it, or quote the text"),
        ("mode=fast # x", "--set mode: cannot be read: # would start a comment"),
        ("sides=[1, 2] # x", "--set sides: cannot be read: # would start a comment"),
        ("sides=[1, # x\n2]", "--set sides: cannot be read: # would start a comment"),
        ("names=[a, b #2, c]", "--set names: cannot be read: # would start a comment"),
        ("extra={size: 1, # x\n share: 1}", "--set extra: cannot be read: # would start a comment"),
        ("extra=#", "--set extra: cannot be read: # would start a comment"),
        ("nam=x #1", "--set nam: top level: unknown key 'nam'; did you mean 'name'?"),
        ("name.x=y #1", "--set name.x: name: expected text, got a block of keys"),
        ("name=", '--set name: name: needs a value; write "" for an empty text'),
        ("title=  ", '--set title: title: needs a value; write "" for an empty text, null for none'),
        ("name = a", "--set name: name: blanks around =; write 'name=a'"),
        ("name=a\nb", "--set name: name: 'a\\nb': a control character, or bytes that are not UTF-8"),
        ("name=a\udcff", "--set name: name: 'a\\udcff': a control character, or bytes that are not UTF-8"),
        ('name="a\\d"', "--set name: cannot be read: found unknown escape character 'd'"),
        ("rate", "--set rate: expected key=value, such as optim.lr=2e-4"),
        ("=3", "--set =3: expected key=value"),
        ("inner..size=3", "--set inner..size=3: expected key=value"),
        ("rate=", "--set rate: rate: needs a value; write null for none"),
        ("include=[x.yaml]", "--set include: top level: unknown key 'include'"),
    ],
)
def test_wrong_overrides(override: str, message: str) -> None:
    (found,) = problems("inner:\n  size: 5", override)
    assert found.startswith(message)


WHOLE = [
    *(
        "runs/exp #2",
        "#",
        "a #b",
        "a: b",
        "a: b: c",
        "-",
        "- a",
        "[a]",
        "[a",
        "{a: b}",
        "{",
        "*a",
        "&a b",
        "!a",
        "!!int 3",
    ),
    *(
        "%a",
        "@a",
        "`a",
        "|",
        ">",
        "? a",
        ": a",
        ", a",
        " a ",
        "\ta",
        "yes",
        "no",
        "True",
        "~",
        "~/x",
        "$X",
        "010",
        "1e-4",
        "5",
    ),
    *(
        "1:30",
        "0x1F",
        "true",
        ".inf",
        "a=b",
        "=",
        "---",
        "...",
        "# a\tb",
        '"a" and "b"',
        "'a' 'b'",
        '"',
        "'a",
        "a'",
        ' "a"',
    ),
    *("tr\u00e9s", "\u00a0a", "\U0001f600", "a\\b", "<<", "x" * 5000),
]


@pytest.mark.parametrize("text", WHOLE)
def test_the_text_of_an_override_is_taken_whole(text: str) -> None:
    found = outer("", f"name={text}", f"title={text}")
    assert (found.name, found.title) == (text, text)
    assert outer(dump_config(found)) == found


def test_null_is_none_in_an_override_of_optional_text_alone() -> None:
    found = outer("title: x", "title=null", "name=null")
    assert (found.name, found.title) == ("null", None)
    assert outer("", "title=NULL", 'name=" null "') == Outer(name=" null ", title="NULL")


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        *(('"a #b"', "a #b"), ("'a #b'", "a #b"), ('"null"', "null"), ("'null'", "null"), ('""', ""), ("''", "")),
        *(('"5"', "5"), ("'it''s'", "it's"), ('"a\\tb"', "a\tb"), (r'"a\\b \"c\""', r'a\b "c"'), ("' a '", " a ")),
    ],
)
def test_text_that_is_quoted_as_a_whole_loses_its_quotes(text: str, inside: str) -> None:
    found = outer("", f"name={text}", f"title={text}")
    assert (found.name, found.title) == (inside, inside)


def test_a_number_sign_inside_lists_and_blocks_of_an_override() -> None:
    found = outer("", "names=[a#b, \"x #1\", '#']", "extra={size: 2}")
    assert found == Outer(names=("a#b", "x #1", "#"), extra=Inner(size=2))
    config = BASE.replace("root: data", "root: a #b")
    split = parse_config(config, "x.yaml", ['data.train={annotations: a#b, images: "x #1"}']).data.train
    assert (split.annotations, split.images) == ("a#b", "x #1")


# ---- includes


def test_fragments_merge_in_order_and_own_keys_win(tmp_path: Path) -> None:
    (tmp_path / "fragments").mkdir()
    write(
        tmp_path / "fragments", a="model:\n  d3q: {min_queries: 5}\noptim: {lr: 1, epochs: 7, lr_drop_epochs: [1, 2]}\n"
    )
    write(tmp_path / "fragments", b="optim: {lr: 2, weight_decay: 0, lr_drop_epochs: [3]}")
    own = f"include:\n  - fragments/a.yaml\n  - fragments/b.yaml\noptim: {{weight_decay: 1}}\n{BASE}"
    path = write(tmp_path, x=own)
    config = load_config(path)
    optim = config.optim
    assert (optim.lr, optim.epochs, optim.weight_decay, optim.lr_drop_epochs) == (2.0, 7, 1.0, (3,))
    assert config.model.d3q == D3QConfig(min_queries=5)
    assert load_config(path, ["model.d3q.min_queries=6"]).model.d3q == D3QConfig(min_queries=6)
    path.write_text(own.replace("  detector: dino", "  detector: dino\n  d3q: null"))
    assert load_config(path).model.d3q is None


def test_errors_of_fragments_name_the_fragment(tmp_path: Path) -> None:
    path = write(tmp_path, x=f"include: [a.yaml]\n{BASE}", a="optim:\n  lr: 1\n  lrr: 2\n  epochs: 0.5\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert caught.value.problems == (
        f"{tmp_path}/a.yaml:3: optim: unknown key 'lrr'; did you mean 'lr'?",
        f"{tmp_path}/a.yaml:4: optim.epochs: expected an integer, got 0.5",
    )


@pytest.mark.parametrize(
    ("include", "line", "message"),
    [
        ("[fragmant.yaml]", 2, "fragmant.yaml: no such file; did you mean 'fragment.yaml'?"),
        ("\n  - fragment.yaml\n  - missing/other.yaml", 4, "missing/other.yaml: no such file"),
        ("fragment.yaml", 2, "expected a list of files, such as [fragments/aitodv2.yaml]"),
        ("[1]", 2, "expected a list of files"),
        ("{a: b}", 2, "expected a list of files"),
    ],
)
def test_wrong_includes(tmp_path: Path, include: str, line: int, message: str) -> None:
    path = write(tmp_path, x=f"# line 1\ninclude: {include}\n{BASE}", fragment="optim: {lr: 1}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}:{line}: include: ")
    assert message in str(caught.value)


def test_fragments_cannot_include_and_must_be_blocks(tmp_path: Path) -> None:
    path = write(tmp_path, x=f"include: [a.yaml]\n{BASE}", a="optim: {lr: 1}\ninclude: [x.yaml]")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: include: a fragment cannot include"):
        load_config(path)
    write(tmp_path, a="- optim")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: top level: expected a block of keys, got a list"):
        load_config(path)
    write(tmp_path, a="optim: {lr: 1}\noptim: {lr: 2}")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: top level: duplicate key 'optim'"):
        load_config(path)


# ---- dump


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "yes",
            "null",
            "~",
            "true",
            "010",
            "1:30",
            "1e-4",
            "1",
            ".5",
            "- a",
            "a: b",
            "a #b",
            "#b",
            "[a]",
            "a, b",
        ),
        *(
            "a\nb",
            "a\tb",
            "tr\u00e9s",
            "\U0001f600",
            '"',
            "'",
            "\\",
            "&a",
            "*a",
            "!a",
            "%a",
            "@a",
            "x" * 5000,
            "a " * 200,
        ),
        *("IMAGENET1K_V1", "data/a-b_c.v2", "/a/b", "\x00", "\x85", "\u2028", "\ud800", "<<", "=", ".inf", "0x1f"),
    ],
)
def test_dumped_text_reads_back(text: str) -> None:
    config = Outer(name=text, title=text, names=(text, "b"))
    assert outer(dump_config(config)) == config
    assert len(dump_config(config).splitlines()) == len(dump_config(Outer()).splitlines())


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-4, 1e-5, 1e300, 5e-324, 0.1 + 0.2, 123456789.125, 1e16, -1e22])
def test_dumped_numbers_read_back(number: float) -> None:
    config = Outer(rate=number, drops=(number, 1.0), sides=(-(10**17), 0))
    assert repr(outer(dump_config(config))) == repr(config)


def test_the_dump_follows_the_schema_and_is_readable() -> None:
    assert (
        dump_config(Outer(title="a b", sides=(800, 800), drops=(1e-4,), extra=Inner(size=3)))
        == """\
flag: false
name: x
title: "a b"
limit: null
rate: 0.1
mode: fast
sides: [800, 800]
drops: [0.0001]
names: null
inner:
  size: 1
  share: 0.5
extra:
  size: 3
  share: 0.5
"""
    )


# ---- the message that the design promises


def test_the_message_of_the_design(tmp_path: Path) -> None:
    path = write(tmp_path, x=BASE.replace("  backbone:", "  d3q:\n    min_querys: 300\n  backbone:"))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value) == f"{path}:5: model.d3q: unknown key 'min_querys'; did you mean 'min_queries'?"
