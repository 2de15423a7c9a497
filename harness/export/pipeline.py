"""How diffusers draws with this folder; written by `harness export --to diffusers`.

Network and scheduler are diffusers' own classes. What their configs cannot hold is set here: how many groups the last
norm of a U-Net has, the spacing of the frequencies of a DiT's time code, and the schedule in double precision
(in single precision the variance of a step, a small difference of large numbers, has three digits).

    pipe = DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)
    images = pipe(batch_size=4, generator=torch.manual_seed(0)).images
"""

from itertools import accumulate, repeat

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class HarnessPipeline(DiffusionPipeline):
    """Images [B, C, S, S] from noise, clipped to [-1, 1] at every step.

    A network that was trained with labels draws `classes` of them evenly unless told which, moved `guidance` times the
    way from no label to the label.
    """

    def __init__(self, network, scheduler, steps=50, groups_out=None, null_label=None, classes=0, guidance=1.0):
        super().__init__()
        if groups_out is not None:
            network.conv_norm_out.num_groups = groups_out
        for block in getattr(network, "transformer_blocks", ()):
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        scheduler.alphas_cumprod = _signal(scheduler.config)
        self.register_modules(network=network, scheduler=scheduler)
        self.register_to_config(
            steps=steps, groups_out=groups_out, null_label=null_label, classes=classes, guidance=guidance
        )

    def denoise(self, x, t, class_labels=None, guidance=1.0):
        """What the network makes of noisy `x` [B, C, S, S] at timestep `t`; without labels [B], of no label."""
        if self.config.null_label is None:
            if class_labels is not None:
                raise ValueError("class_labels for a network that knows none")
            return self.network(x, t).sample
        time = torch.full((len(x),), int(t), device=x.device)
        none = torch.full((len(x),), self.config.null_label, device=x.device)
        if class_labels is None:
            return self.network(x, time, class_labels=none).sample
        led = self.network(x, time, class_labels=class_labels.to(x.device)).sample
        if guidance == 1:
            return led
        free, c = self.network(x, time, class_labels=none).sample, x.shape[1]
        return torch.cat([torch.lerp(free[:, :c], led[:, :c], guidance), led[:, c:]], dim=1)

    @torch.no_grad()
    def __call__(
        self,
        batch_size=1,
        generator=None,
        num_inference_steps=None,
        latents=None,
        class_labels=None,
        guidance_scale=None,
        output_type="pil",
        return_dict=True,
    ):
        """`latents` is the noise to start from; `output_type` "pil", "np", or "pt" for tensors in [-1, 1]."""
        network, scheduler = self.network, self.scheduler
        shape = (batch_size, network.config.in_channels, network.config.sample_size, network.config.sample_size)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=self.device, dtype=network.dtype)
        x = latents.to(self.device, network.dtype)
        if class_labels is None and self.config.classes:
            one = generator[0] if isinstance(generator, list) else generator
            place = "cpu" if one is None else one.device
            class_labels = torch.randint(self.config.classes, (len(x),), generator=one, device=place)
        guidance = self.config.guidance if guidance_scale is None else guidance_scale
        words = self.set_steps(num_inference_steps or self.config.steps)
        for t in self.progress_bar(scheduler.timesteps):
            found = self.denoise(x, t, class_labels, guidance)
            if isinstance(scheduler, DDIMScheduler):  # which has no use for a learned variance
                found = found[:, : x.shape[1]]
            x = scheduler.step(found, t, x, generator=generator, **words).prev_sample
        x = x.clamp(-1, 1)
        if output_type != "pt":
            x = (x / 2 + 0.5).permute(0, 2, 3, 1).float().cpu().numpy()
            x = self.numpy_to_pil(x) if output_type == "pil" else x
        return ImagePipelineOutput(images=x) if return_dict else (x,)

    def set_steps(self, steps):
        """The timesteps of `steps` steps, and what a step is told beside them."""
        scheduler = self.scheduler
        total = scheduler.config.num_train_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"{steps} steps: a number from 1 to {total}")
        if isinstance(scheduler, DDIMScheduler):
            if total % steps:
                raise ValueError(f"{steps} steps do not divide {total}")
            scheduler.set_timesteps(steps)
            return {"use_clipped_model_output": True}
        # As even as rounding allows, from the noisiest to the clean end; the sum's rounding is improved DDPM's.
        stride = (total - 1) / max(1, steps - 1)
        places = accumulate(repeat(stride, steps - 1), initial=0.0) if steps > 1 else [total - 1]
        scheduler.set_timesteps(timesteps=[round(place) for place in places][::-1])
        return {}


def _signal(config):
    """The share of the clean image's power at every timestep, float64."""
    total = config.num_train_timesteps
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, total, dtype=torch.float64)
    elif config.beta_schedule == "squaredcos_cap_v2":
        edges = torch.arange(total + 1, dtype=torch.float64) / total
        edges = torch.cos((edges + 0.008) / 1.008 * torch.pi / 2) ** 2
        betas = (1 - edges[1:] / edges[:-1]).clamp(max=0.999)
    else:
        raise ValueError(f"the schedule {config.beta_schedule}: linear or squaredcos_cap_v2")
    return torch.cumprod(1 - betas, dim=0)
