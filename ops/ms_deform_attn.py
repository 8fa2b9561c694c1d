"""The operator: its schema, fake kernel and gradient. What computes it is chosen in `ops/backends.py`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ops import cuda_kernels
from ops.backends import FORMS, Form, choose_backend, forced_choice, without_cuda_kernels
from ops.checks import HALF, check_arguments, check_output_gradient
from ops.embedding_bag import ms_deform_attn_gradients

# At import, as torch.compile cannot trace this call (torch 2.11).
AUTOCAST_DEVICES = tuple(name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name))


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention.

    value               (B, S, M, D)        S = sum of H*W over the levels
    spatial_shapes      L pairs (H, W)      Python integers: reading them never waits for the device
    sampling_locations  (B, Q, M, L, P, 2)  (x, y) in [0, 1] of each level's map; outside, and NaN, counts as zero
    attention_weights   (B, Q, M, L, P)
    returns             (B, Q, M*D)         in the dtype of value

    Dtypes: all float32, or all float64, or value float16 or bfloat16 with float32 sampling_locations and
    attention_weights in float32 or value's dtype; half values are computed in float32 and rounded once. Under autocast
    locations and weights may be half too and are computed in float32.

    Raises ValueError where shapes, dtypes or devices disagree or the forced backend cannot run.
    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    flat_shapes = [size for shape in spatial_shapes for size in shape]
    device_type = value.device.type
    if device_type in AUTOCAST_DEVICES and torch.is_autocast_enabled(device_type):
        sampling_locations, attention_weights = _exact_places(value, sampling_locations, attention_weights)
    check_arguments(value, flat_shapes, sampling_locations, attention_weights)
    # While compiling or with fake tensors, the device cannot be tested; the operator tests it when it runs.
    known = not torch.compiler.is_compiling() and not isinstance(value, FakeTensor)
    forced = forced_choice()
    backend = choose_backend(device_type, value.device.index if known else None, forced)
    if backend == "cuda" and (reason := cuda_kernels.unsupported_kind(value, flat_shapes)):
        backend = without_cuda_kernels(reason, forced)
    if backend not in FORMS or _adds_in_any_order(backend, device_type):
        return torch.ops.d3q.ms_deform_attn(value, flat_shapes, sampling_locations, attention_weights, forced)
    # Pure PyTorch runs outside the operator: autograd then saves what the operator would recompute.
    return _run_form(FORMS[backend], value, flat_shapes, sampling_locations, attention_weights)


def _adds_in_any_order(backend: str, device_type: str) -> bool:
    """Whether torch's gradients vary from run to run although they should be deterministic; the operator's do not."""
    return backend == "grid_sample" and device_type == "cuda" and torch.are_deterministic_algorithms_enabled()


def _backend_of_call(value: Tensor, spatial_shapes: Sequence[int], forced: str) -> str:
    """The backend inside the operator, where sizes are known even in compiled programs."""
    backend = choose_backend(value.device.type, value.device.index, forced)
    if backend == "cuda":
        reason = cuda_kernels.unsupported_kind(value, spatial_shapes) or cuda_kernels.unsupported_call(value)
        return without_cuda_kernels(reason, forced or forced_choice()) if reason else backend
    return backend


def _run_form(form: Form, value: Tensor, flat_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Run a pure PyTorch backend, half-precision values in float32; an empty call returns zeros."""
    if locations.numel() == 0 or value.numel() == 0:
        connected = sum(tensor.flatten()[:0].sum(dtype=value.dtype) for tensor in (value, locations, weights))
        shape = (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
        return torch.as_tensor(connected).expand(shape).contiguous()
    dtype = value.dtype
    if dtype in HALF:
        value, weights = value.float(), weights.float()
    return form(value, _pairs(flat_shapes), locations, weights).to(dtype)


def _pairs(flat_shapes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat_shapes[::2], flat_shapes[1::2], strict=True))


# The operator, for exported and compiled programs and for every backend.

torch.library.define(
    "d3q::ms_deform_attn",
    "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights, "
    "str forced='') -> Tensor",
)
torch.library.define(
    "d3q::ms_deform_attn_backward",
    "(Tensor output_gradient, Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights, str forced='') -> (Tensor, Tensor, Tensor)",
)


@torch.library.impl("d3q::ms_deform_attn", "default")
def _forward(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor, forced: str = ""
) -> Tensor:
    check_arguments(value, spatial_shapes, locations, weights)
    backend = _backend_of_call(value, spatial_shapes, forced)
    if backend in FORMS:
        return _run_form(FORMS[backend], value, spatial_shapes, locations, weights)
    if backend == "cuda":
        return cuda_kernels.forward(value, spatial_shapes, locations, weights)
    cells, places, shares = _kernel_inputs(value, locations, weights)
    return torch.ops.d3q.ms_deform_attn_cpu(cells, spatial_shapes, places, shares).to(value.dtype)


@torch.library.impl("d3q::ms_deform_attn_backward", "default")
def _backward(
    output_gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    forced: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(value, spatial_shapes, locations, weights)
    check_output_gradient(output_gradient, value, locations)
    backend = _backend_of_call(value, spatial_shapes, forced)
    if backend == "cuda" and not torch.are_deterministic_algorithms_enabled():
        gradients = cuda_kernels.backward(output_gradient, value, spatial_shapes, locations, weights)
    else:
        inputs = _kernel_inputs(value, locations, weights)
        gradient = output_gradient.to(inputs[0].dtype).contiguous()
        if backend == "cpp":
            run = torch.ops.d3q.ms_deform_attn_cpu_backward
            gradients = run(gradient, inputs[0], spatial_shapes, inputs[1], inputs[2])
        else:
            gradients = ms_deform_attn_gradients(gradient, inputs[0], _pairs(spatial_shapes), inputs[1], inputs[2])
    value_gradient, location_gradient, weight_gradient = (
        _in_layout_of(tensor, gradient.to(tensor.dtype))
        for gradient, tensor in zip(gradients, (value, locations, weights), strict=True)
    )
    return value_gradient, location_gradient, weight_gradient


def _in_layout_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the strides of the fake kernel: those of the tensor, if it is dense."""
    promised = torch.empty_like(tensor, device="meta").stride()
    return gradient if gradient.stride() == promised else torch.empty_like(tensor).copy_(gradient)


def _kernel_inputs(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of the kernels: locations and weights contiguous, channels of value adjacent, half values as float32."""
    if value.dtype in HALF:
        value, weights = value.float(), weights.float()
    if value.stride(-1) != 1:
        value = value.contiguous()
    return value, locations.contiguous(), weights.contiguous()


@torch.library.register_fake("d3q::ms_deform_attn")
def _fake_forward(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor, forced: str = ""
) -> Tensor:
    check_arguments(value, spatial_shapes, locations, weights)
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake("d3q::ms_deform_attn_backward")
def _fake_backward(
    output_gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    forced: str = "",
) -> tuple[Tensor, Tensor, Tensor]:
    check_arguments(value, spatial_shapes, locations, weights)
    check_output_gradient(output_gradient, value, locations)
    value_gradient, location_gradient, weight_gradient = (
        torch.empty_like(tensor) for tensor in (value, locations, weights)
    )
    return value_gradient, location_gradient, weight_gradient


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.spatial_shapes, locations, weights, *forced = inputs
    ctx.forced = (forced and forced[0]) or forced_choice()
    ctx.save_for_backward(value, locations, weights)


def _gradients(ctx: Any, output_gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
    value, locations, weights = ctx.saved_tensors
    gradients = torch.ops.d3q.ms_deform_attn_backward(
        output_gradient, value, ctx.spatial_shapes, locations, weights, ctx.forced
    )
    return gradients[0], None, gradients[1], gradients[2], None


torch.library.register_autograd("d3q::ms_deform_attn", _gradients, setup_context=_setup_context)


def _keep_device(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.device_type, ctx.forced = inputs[1].device.type, inputs[5] if len(inputs) > 5 else ""


def _no_second_derivatives(ctx: Any, *_: Tensor) -> None:
    backend = choose_backend(ctx.device_type, None, ctx.forced)
    remedy = "" if backend == "gather" else "force the backend that has them with D3Q_OPS_BACKEND=gather, and "
    raise NotImplementedError(
        f"ms_deform_attn: no second derivatives through the operator ({backend}); {remedy}call "
        "ops.ms_deform_attn itself, not compiled"
    )


torch.library.register_autograd("d3q::ms_deform_attn_backward", _no_second_derivatives, setup_context=_keep_device)


# Under autocast, value keeps its dtype, and locations and weights become float32: in bfloat16, a location in an 800x800
# image would err by up to 1.6 px.


def _exact_places(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    return (locations, weights) if value.dtype == torch.float64 else (locations.float(), weights.float())


def _autocast_rule(device_type: str) -> Callable[..., Tensor]:
    def rule(
        value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor, forced: str = ""
    ) -> Tensor:
        with torch.autocast(device_type, enabled=False):
            locations, weights = _exact_places(value, locations, weights)
            return torch.ops.d3q.ms_deform_attn(value, spatial_shapes, locations, weights, forced)

    return rule


for _device_type, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    torch.library.impl("d3q::ms_deform_attn", _key, _autocast_rule(_device_type))
