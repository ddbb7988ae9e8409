"""One training run: its settings, its moving parts, and the files it can be resumed from."""

from __future__ import annotations

import copy
import importlib
import json
import math
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..conditioning.adapter import to_published
from .diffusion import PREDICTIONS
from .tensor_store import write_safetensors

TRAINING_PACKAGES = ("accelerate", "diffusers", "transformers")  # which ComfyUI itself does not need
PRECISIONS = ("fp32", "bf16")
RESULT_DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
STATE_FILE = "state.safetensors"
ADAPTER_FILE = "adapter.safetensors"
# A resumed run may change how a step is cut into batches and what is written when; all else would make it another run.
CHANGEABLE = ("batch_size", "gradient_accumulation", "save_every", "validate_every", "out_dir", "result_dtype")


@dataclass(frozen=True)
class Product:
    """What a run trains: how messages and tensors of the state call it, the file it ends in, and that file's tensors,
    made of the module's.
    """

    name: str
    file: str
    published: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


ADAPTER = Product("adapter", ADAPTER_FILE, to_published)


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    One step sees batch_size * gradient_accumulation * processes samples; a `*_every` of 0 means only at the end.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int = 100
    weight_decay: float = 0.01
    gradient_accumulation: int = 1
    clip_norm: float = 1.0
    seed: int = 0
    empty_share: float = 0.1  # captions replaced by "", which classifier-free guidance needs
    prediction: str = "epsilon"
    high_noise_share: float = 0.0  # timesteps drawn from the last 40% of the schedule only, not from all of it
    high_noise_weight: bool = False  # weighs each sample's loss by sqrt(min(30, 1 / alpha))
    min_snr: float = 0.0  # largest signal-to-noise ratio that counts in the loss; 0 weighs all alike
    buckets: bool = False  # batches of one size of image, so that the batch size is a part of the run
    precision: str = "fp32"
    ema: float = 0.0  # decay of the averaged weights that become the result; 0 keeps the last weights
    save_every: int = 0
    validate_every: int = 0
    out_dir: Path | None = None  # None writes no file
    result_dtype: str = "fp16"

    def __post_init__(self):
        for name in ("steps", "batch_size", "gradient_accumulation"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("warmup_steps", "save_every", "validate_every", "weight_decay", "min_snr"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("learning_rate", "clip_norm"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("empty_share", "high_noise_share"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a share between 0 and 1")
        _require(0 <= self.ema < 1, "ema", self.ema, "0 (off) or a decay below 1, such as 0.999")
        _require(self.prediction in PREDICTIONS, "prediction", self.prediction, " or ".join(PREDICTIONS))
        _require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        _require(self.result_dtype in RESULT_DTYPES, "result_dtype", self.result_dtype, " or ".join(RESULT_DTYPES))
        if self.high_noise_weight and self.prediction == "v_prediction":
            raise ValueError(
                "high_noise_weight is for epsilon prediction: the v_prediction loss weighs high noise by itself"
            )
        if self.high_noise_weight and self.min_snr:
            raise ValueError("high_noise_weight and min_snr both weigh samples by their noise: use one of them")


def import_training_package(name: str) -> ModuleType:
    """Import a package that only training needs. Raises ImportError that says how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"training needs {', '.join(TRAINING_PACKAGES)}, and {error.name} is not installed: run "
            f"{sys.executable} -m pip install {' '.join(TRAINING_PACKAGES)}"
        ) from error


def _require(holds: bool, name: str, value, expected: str) -> None:
    if not holds:
        raise ValueError(f"the training setting {name} is {value!r}, expected {expected}")


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the rate of step `step` (counted from 0): a linear warm-up, then half a cosine down to zero."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class TrainingRun:
    """Weights, their average, the optimizer and the number of steps done.

    `accelerator` is an `accelerate.Accelerator`.
    """

    def __init__(
        self,
        module: nn.Module,
        settings: TrainSettings,
        accelerator,
        metadata: dict[str, str],
        product: Product = ADAPTER,
    ):
        dtypes = {parameter.dtype for parameter in module.parameters()}
        if dtypes != {torch.float32}:
            raise ValueError(
                f"the {product.name} to train must be float32, not {', '.join(map(str, dtypes))}: its updates would be "
                "rounded away"
            )
        self.module, self.settings, self.accelerator, self.metadata = module, settings, accelerator, metadata
        self.product = product
        self.device = next(module.parameters()).device
        self.parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.wrapped = accelerator.prepare(module)
        self.average = copy.deepcopy(module).requires_grad_(False) if settings.ema else None
        self.step = 0

    @property
    def result(self) -> nn.Module:
        return self.module if self.average is None else self.average

    @property
    def samples_per_step(self) -> int:
        return self.settings.batch_size * self.settings.gradient_accumulation * self.accelerator.num_processes

    def advance(self, compute_loss: Callable[[range], torch.Tensor], stop: bool) -> tuple[float, bool]:
        """Take one step over this process's share of its samples.

        Returns the mean loss, and whether any process shall stop.
        """
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, settings)
        first = (
            self.step * self.samples_per_step
            + self.accelerator.process_index * settings.gradient_accumulation * settings.batch_size
        )
        total = torch.zeros((), device=self.device)
        for part in range(settings.gradient_accumulation):
            is_last = part == settings.gradient_accumulation - 1
            start = first + part * settings.batch_size
            with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                loss = compute_loss(range(start, start + settings.batch_size)) / settings.gradient_accumulation
                loss.backward()
            total += loss.detach()
        mean_loss, stop = self.accelerator.reduce(
            torch.stack([total, total.new_tensor(float(stop))]), reduction="mean"
        ).tolist()
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"the loss of step {self.step + 1} is {mean_loss}: lower the learning rate ({settings.learning_rate}) "
                "or check what it is trained on"
            )
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            # A young average forgets the untrained weights sooner.
            decay = min(settings.ema, (1 + self.step) / (10 + self.step))
            for mean, value in zip(self.average.parameters(), self.parameters.values(), strict=True):
                mean.lerp_(value.detach(), 1 - decay)
        self.step += 1
        return mean_loss, stop > 0

    def state_exists(self) -> bool:
        """Return whether there is a state to resume from."""
        return self.settings.out_dir is not None and self._state_path.is_file()

    def save(self) -> None:
        """Write state and result, each complete or not at all, where there is a folder.

        Every process calls it; the main one writes.
        """
        if self.settings.out_dir is not None and self.accelerator.is_main_process:
            self._write(Path(self.settings.out_dir))
        self.accelerator.wait_for_everyone()  # a launcher that sees one process leave ends the others

    def load(self) -> None:
        """Load what `save` wrote.

        Raises ValueError for a state of other settings or another module, and for a damaged file.
        """
        try:
            with safe_open(self._state_path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(f"{self._state_path} cannot be read ({error}): delete it to begin anew") from error
        self._check_settings(json.loads(metadata.get("settings", "{}")))

        def part(prefix):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

        try:
            self.module.load_state_dict(part(f"{self.product.name}."))
            if self.average is not None:
                self.average.load_state_dict(part("average."))
        except RuntimeError as error:
            raise ValueError(f"{self._state_path} belongs to another {self.product.name}: {error}") from error
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {index: part(f"optimizer.{name}.") for index, name in enumerate(self.parameters)}
        self.optimizer.load_state_dict(optimizer)
        self.step = int(metadata["step"])

    @property
    def _state_path(self) -> Path:
        assert self.settings.out_dir is not None, "callers ask for it first"  # noqa: S101
        return Path(self.settings.out_dir) / STATE_FILE

    def _write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"{self.product.name}.{name}": tensor for name, tensor in self.module.state_dict().items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"optimizer.{name}.{key}": tensor for key, tensor in self.optimizer.state[parameter].items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        write_safetensors(
            self._state_path, tensors, {"step": str(self.step), "settings": json.dumps(self._fixed_settings())}
        )
        result = {
            name: tensor.to(RESULT_DTYPES[self.settings.result_dtype])
            for name, tensor in self.result.state_dict().items()
        }
        settings = json.dumps(self._fixed_settings(), sort_keys=True)
        labels = {**self.metadata, "steps": str(self.step), "seed": str(self.settings.seed), "settings": settings}
        write_safetensors(folder / self.product.file, self.product.published(result), labels)

    def _fixed_settings(self) -> dict:
        free = [name for name in CHANGEABLE if name != "batch_size" or not self.settings.buckets]
        settings = {name: value for name, value in asdict(self.settings).items() if name not in free}
        return {**settings, "samples_per_step": self.samples_per_step}

    def _check_settings(self, saved: dict) -> None:
        saved = {"min_snr": 0.0, "buckets": False, **saved}  # of a state that an earlier version wrote
        changed = [
            f"{name} {saved.get(name)} -> {value}"
            for name, value in self._fixed_settings().items()
            if saved.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self._state_path} cannot be resumed with other settings ({'; '.join(changed)}): "
                f"restore them, or name another folder"
            )
