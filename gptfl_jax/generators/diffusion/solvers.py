"""Samplers of diffusion models: DPM-Solver++ (2M), DDIM and LCM.

All are linear in what a step knows: the sample, the network's output, the predicted
clean sample, the one before it and, of LCM alone, fresh noise. So a sampler is a table
of coefficients, computed on the host in float64, and `step` is the same few products
for all.

Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models" (arXiv 2211.01095); Song et al., "Denoising Diffusion Implicit Models"
(arXiv 2010.02502); Luo et al., "Latent Consistency Models" (arXiv 2310.04378). Options
are those of the `scheduler_config.json` of `diffusers`.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gptfl_jax.errors import UserError
from gptfl_jax.released.model_config import ModelConfig


class Schedule(NamedTuple):
    """The coefficients of every step; a row of each belongs to one step.

    A step computes

        clean = clip(clean_from_sample * sample + clean_from_output * output)
        next = next_from_sample * sample + next_from_output * output
               + next_from_clean * clean + next_from_previous * previous_clean
               + next_from_noise * noise

    `next_from_noise` is None for a sampler that adds none.
    """

    timesteps: Int[Array | np.ndarray, "*steps"]
    clean_from_sample: Float[Array | np.ndarray, "*steps"]
    clean_from_output: Float[Array | np.ndarray, "*steps"]
    clean_limit: Float[Array | np.ndarray, "*steps"]
    next_from_sample: Float[Array | np.ndarray, "*steps"]
    next_from_output: Float[Array | np.ndarray, "*steps"]
    next_from_clean: Float[Array | np.ndarray, "*steps"]
    next_from_previous: Float[Array | np.ndarray, "*steps"]
    next_from_noise: Float[Array | np.ndarray, "*steps"] | None = None


def step(
    row: Schedule,
    sample: Float[Array | np.ndarray, "*shape"],
    output: Float[Array | np.ndarray, "*shape"],
    previous_clean: Float[Array | np.ndarray, "*shape"],
    noise: Float[Array | np.ndarray, "*shape"] | None = None,
) -> tuple[Float[Array | np.ndarray, "*shape"], Float[Array | np.ndarray, "*shape"]]:
    """One step of the sampler.

    Args:
        row: this step's row of a `Schedule` (`jax.tree.map(lambda x: x[i], schedule)`).
        sample: the noisy sample.
        output: what the network predicts for it.
        previous_clean: the clean sample of the step before; any finite value at first.
        noise: of unit variance, where the schedule has `next_from_noise`.

    Returns:
        The less noisy sample, and the predicted clean sample for the next step.
    """
    clean = row.clean_from_sample * sample + row.clean_from_output * output
    clean = jnp.clip(clean, -row.clean_limit, row.clean_limit)
    sample = (
        row.next_from_sample * sample
        + row.next_from_output * output
        + row.next_from_clean * clean
        + row.next_from_previous * previous_clean
    )
    if row.next_from_noise is not None:
        sample = sample + row.next_from_noise * noise
    return sample, clean


@dataclasses.dataclass(frozen=True)
class _NoiseSchedule(ModelConfig):
    """Noise levels that a diffusion model was trained on, and what it predicts.

    Attributes:
        num_train_timesteps: number of noise levels.
        beta_start: variance added at the first level.
        beta_end: variance added at the last level.
        beta_schedule: "linear", "scaled_linear" (in the square root) or
            "squaredcos_cap_v2".
        trained_betas: the variances themselves, instead of the above.
        prediction_type: "epsilon" (noise), "v_prediction" (velocity, arXiv 2202.00512)
            or "sample" (the clean sample).
        timestep_spacing: how sampling picks its levels: "linspace", "leading" or
            "trailing" (arXiv 2305.08891, table 2).
        steps_offset: added to the levels of "leading".
        rescale_betas_zero_snr: whether the last level is pure noise (same paper).
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "linspace"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False

    adds_noise: ClassVar[bool] = False
    _choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        "prediction_type": ("epsilon", "v_prediction", "sample"),
        "timestep_spacing": ("linspace", "leading", "trailing"),
    }

    def __post_init__(self):
        for name, known in self._choices.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} = {getattr(self, name)!r}: takes "
                    + " or ".join(map(repr, known))
                )
        betas = self.trained_betas
        if betas is not None and len(betas) != self.num_train_timesteps:
            raise UserError(
                f"trained_betas: takes one for each of num_train_timesteps = "
                f"{self.num_train_timesteps}"
            )

    def to_json(self) -> dict[str, Any]:
        options = {"_class_name": self.torch_class} | super().to_json()
        # JSON has no infinity; what is infinite here is so by default.
        return {k: v for k, v in options.items() if v not in (math.inf, -math.inf)}

    def alphas_cumprod(self) -> Float[np.ndarray, " levels"]:
        """Share of the clean sample's variance left at each noise level."""
        n = self.num_train_timesteps
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        elif self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, n)
        elif self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, n) ** 2
        else:
            t = np.arange(n + 1) / n
            share = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = np.minimum(1 - share[1:] / share[:-1], 0.999)
        alphas = np.cumprod(1 - betas)
        if self.rescale_betas_zero_snr:
            root = np.sqrt(alphas)
            alphas = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alphas

    def _clean_coefficients(self, alpha, sigma):
        """The clean sample from noisy sample and output: see `Schedule`."""
        if self.prediction_type == "epsilon":
            return 1 / alpha, -sigma / alpha
        if self.prediction_type == "v_prediction":
            return alpha, -sigma
        return np.zeros_like(alpha), np.ones_like(alpha)

    def _check(self, num_steps):
        if not 1 <= num_steps <= self.num_train_timesteps:
            raise UserError(
                f"num_steps = {num_steps}: takes 1 to {self.num_train_timesteps}, the "
                "number of noise levels that the model was trained on"
            )


@dataclasses.dataclass(frozen=True)
class DPMSolver(_NoiseSchedule):
    """DPM-Solver++ in its multistep form, of first or second order.

    Attributes:
        solver_order: 2, or 1 (which is DDIM).
        solver_type: of the second order: "midpoint" or "heun"; what files of other
            samplers have, "logrho", "bh1" or "bh2", is "midpoint", as in `diffusers`.
        lower_order_final: a first-order last step when there are fewer than 15.
        euler_at_final: a first-order last step always.
        final_sigmas_type: the noise left: "zero", or "sigma_min" of the training
            levels.
        use_karras_sigmas: levels spaced as by Karras et al. (arXiv 2206.00364, eq. 5)
            instead of by `timestep_spacing`.
        lambda_min_clipped: smallest log(alpha / sigma) of a level to start from.
    """

    torch_class: ClassVar[str] = "DPMSolverMultistepScheduler"
    fixed: ClassVar = {
        "algorithm_type": ("dpmsolver++",),
        "thresholding": (False,),
        "use_beta_sigmas": (False, None),
        "use_dynamic_shifting": (False,),
        "use_exponential_sigmas": (False, None),
        "use_flow_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        # Of samplers that add noise; a network with a learned one has other outputs.
        "variance_type": (
            *(None, "fixed_small", "fixed_small_log", "fixed_large"),
            "fixed_large_log",
        ),
    }
    # A scheduler's file may have been written for another sampler of the same model.
    without_effect: ClassVar = None

    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    final_sigmas_type: str = "zero"
    use_karras_sigmas: bool = False
    lambda_min_clipped: float = -math.inf

    _choices: ClassVar = _NoiseSchedule._choices | {
        "solver_order": (1, 2),
        "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
        "final_sigmas_type": ("zero", "sigma_min"),
    }

    def schedule(self, num_steps: int) -> Schedule:
        """The coefficients for sampling in `num_steps` steps.

        Raises:
            UserError: if there are fewer noise levels than steps.
        """
        self._check(num_steps)
        alphas = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            alphas[-1] = 2**-24  # pure noise has no finite sigma
        sigmas = np.sqrt((1 - alphas) / alphas)
        timesteps, ratio = self._levels(num_steps, sigmas)
        final = 0.0 if self.final_sigmas_type == "zero" else sigmas[0]
        ratio = np.append(ratio, final)
        # sample = alpha * clean + sigma * noise, with alpha^2 + sigma^2 = 1.
        alpha = 1 / np.sqrt(1 + ratio**2)
        sigma = ratio * alpha
        # lambda = -log(ratio); exp(-h) of a step is the ratio of ratios.
        shrink = ratio[1:] / ratio[:-1]
        next_from_sample = sigma[1:] / sigma[:-1]
        first_order = alpha[1:] * (1 - shrink)
        correction = np.zeros(num_steps)
        for i in range(1, num_steps):
            last = i == num_steps - 1
            if self.solver_order == 1 or (
                last
                and (
                    self.final_sigmas_type == "zero"
                    or self.euler_at_final
                    or (self.lower_order_final and num_steps < 15)
                )
            ):
                continue
            h = -np.log(shrink[i])
            h_previous = -np.log(shrink[i - 1])
            if h_previous == 0:
                continue  # a level used twice, by rounding, gives no slope
            # Half the slope of the clean sample over this step, by finite difference.
            weight = first_order[i] / 2
            if self.solver_type == "heun":
                weight = alpha[i + 1] * ((shrink[i] - 1) / h + 1)
            correction[i] = weight * h / h_previous
        clean_from_sample, clean_from_output = self._clean_coefficients(
            alpha[:-1], sigma[:-1]
        )
        return _schedule(
            timesteps,
            clean_from_sample=clean_from_sample,
            clean_from_output=clean_from_output,
            next_from_sample=next_from_sample,
            next_from_clean=first_order + correction,
            next_from_previous=-correction,
        )

    def _levels(self, num_steps, sigmas):
        """Timesteps and noise-to-signal ratios of the steps, from the training's."""
        levels = self.num_train_timesteps
        if self.use_karras_sigmas:
            low, high = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
            ratio = (high + np.linspace(0, 1, num_steps) * (low - high)) ** 7
            timesteps = np.interp(np.log(ratio), np.log(sigmas), np.arange(levels))
            if self.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
            return timesteps.astype(np.int32), ratio
        last = levels - np.searchsorted(-np.log(sigmas[::-1]), self.lambda_min_clipped)
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, last - 1, num_steps + 1).round()[:0:-1]
        elif self.timestep_spacing == "leading":
            timesteps = np.arange(num_steps, 0, -1) * (last // (num_steps + 1))
            timesteps = timesteps + self.steps_offset
        else:
            timesteps = _trailing(last, levels / num_steps, num_steps)
        timesteps = _within(timesteps, levels)
        return timesteps, np.interp(timesteps, np.arange(levels), sigmas)


@dataclasses.dataclass(frozen=True)
class DDIM(_NoiseSchedule):
    """Denoising diffusion implicit model without added noise (eta = 0).

    Attributes:
        clip_sample: whether the clean sample is clipped to `clip_sample_range`.
        clip_sample_range: largest absolute value then.
        set_alpha_to_one: whether the last step goes to the clean sample, or to the
            first of the training's noise levels.
    """

    torch_class: ClassVar[str] = "DDIMScheduler"
    fixed: ClassVar = {"thresholding": (False,)}
    without_effect: ClassVar = None

    timestep_spacing: str = "leading"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True

    def schedule(self, num_steps: int) -> Schedule:
        """The coefficients for sampling in `num_steps` steps.

        Raises:
            UserError: if there are fewer noise levels than steps.
        """
        self._check(num_steps)
        levels = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, levels - 1, num_steps).round()[::-1]
        elif self.timestep_spacing == "leading":
            timesteps = np.arange(num_steps)[::-1] * (levels // num_steps)
            timesteps = timesteps + self.steps_offset
        else:
            timesteps = _trailing(levels, levels / num_steps, num_steps)
        timesteps = _within(timesteps, levels)

        alphas = self.alphas_cumprod()
        final = 1.0 if self.set_alpha_to_one else alphas[0]
        following = timesteps - levels // num_steps
        next_alphas = np.where(following >= 0, alphas[following], final)
        alpha, sigma = np.sqrt(alphas[timesteps]), np.sqrt(1 - alphas[timesteps])
        clean_from_sample, clean_from_output = self._clean_coefficients(alpha, sigma)
        direction = np.sqrt(1 - next_alphas)
        # The noise belongs to the clean sample before it is clipped.
        if self.prediction_type == "epsilon":
            noise_from_sample, noise_from_output = np.zeros(num_steps), 1
        elif self.prediction_type == "v_prediction":
            noise_from_sample, noise_from_output = sigma, alpha
        else:
            noise_from_sample, noise_from_output = 1 / sigma, -alpha / sigma
        return _schedule(
            timesteps,
            clean_from_sample=clean_from_sample,
            clean_from_output=clean_from_output,
            clean_limit=self.clip_sample_range if self.clip_sample else np.inf,
            next_from_sample=direction * noise_from_sample,
            next_from_output=direction * noise_from_output,
            next_from_clean=np.sqrt(next_alphas),
        )


@dataclasses.dataclass(frozen=True)
class LCM(_NoiseSchedule):
    """Multistep sampling of a latent consistency model (arXiv 2310.04378, algorithm 3).

    Each step predicts the clean sample at once, and noises it again to the next level.
    Such a model, or one with the weights of an LCM-LoRA (arXiv 2311.05556), needs 4 to
    8 steps, and no guidance at run time: its training has folded it in.

    Attributes:
        original_inference_steps: equally spaced noise levels that the model was
            distilled on, of which sampling picks its own.
        clip_sample: whether the clean sample is clipped to `clip_sample_range`.
        clip_sample_range: largest absolute value then.
        timestep_scaling: how steeply the boundary condition, that a sample without
            noise is clean, gives way to the network.
    """

    torch_class: ClassVar[str] = "LCMScheduler"
    fixed: ClassVar = {"thresholding": (False,)}
    without_effect: ClassVar = None
    adds_noise: ClassVar[bool] = True
    # The standard deviation of data that the boundary condition stands for.
    _sigma_data: ClassVar[float] = 0.5

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    timestep_spacing: str = "leading"
    original_inference_steps: int = 50
    clip_sample: bool = False
    clip_sample_range: float = 1.0
    timestep_scaling: float = 10.0

    def __post_init__(self):
        super().__post_init__()
        if not 1 <= self.original_inference_steps <= self.num_train_timesteps:
            raise UserError(
                f"original_inference_steps = {self.original_inference_steps}: takes 1 "
                f"to num_train_timesteps = {self.num_train_timesteps}"
            )

    def schedule(self, num_steps: int) -> Schedule:
        """The coefficients for sampling in `num_steps` steps.

        Raises:
            UserError: there are more than `original_inference_steps`.
        """
        original = self.original_inference_steps
        if not 1 <= num_steps <= original:
            raise UserError(
                f"num_steps = {num_steps}: takes 1 to {original}, the number of noise "
                "levels that a latent consistency model was distilled on; 4 to 8 are "
                "enough"
            )
        stride = self.num_train_timesteps // original
        picked = np.floor(np.linspace(0, original, num_steps, endpoint=False))
        timesteps = (original - picked.astype(np.int32)) * stride - 1

        alphas = self.alphas_cumprod()[timesteps]
        next_alphas = np.append(alphas[1:], 1.0)
        alpha, sigma = np.sqrt(alphas), np.sqrt(1 - alphas)
        clean_from_sample, clean_from_output = self._clean_coefficients(alpha, sigma)
        time = timesteps * self.timestep_scaling
        skip = self._sigma_data**2 / (time**2 + self._sigma_data**2)
        out = time / np.sqrt(time**2 + self._sigma_data**2)
        return _schedule(
            timesteps.astype(np.int32),
            clean_from_sample=clean_from_sample,
            clean_from_output=clean_from_output,
            clean_limit=self.clip_sample_range if self.clip_sample else np.inf,
            next_from_sample=np.sqrt(next_alphas) * skip,
            next_from_clean=np.sqrt(next_alphas) * out,
            next_from_noise=np.sqrt(1 - next_alphas),
        )


Solver = DPMSolver | DDIM | LCM


def _trailing(last, stride, num_steps):
    """Levels from the last one down; by rounding, the range may have one too many."""
    return np.arange(last, 0, -stride)[:num_steps].round() - 1


def _within(timesteps, levels):
    """An offset may lead beyond the last level, where nearly all are used."""
    return np.minimum(timesteps, levels - 1).astype(np.int32)


def _schedule(timesteps, clean_limit=np.inf, **coefficients) -> Schedule:
    """A `Schedule` in float32; coefficients not named are zero, or None for noise."""
    rows = {name: np.zeros(len(timesteps), np.float32) for name in Schedule._fields}
    rows["next_from_noise"] = None
    for name, values in (coefficients | {"clean_limit": clean_limit}).items():
        rows[name] = np.broadcast_to(values, timesteps.shape).astype(np.float32)
    return Schedule(**rows | {"timesteps": timesteps})
