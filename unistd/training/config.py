"""The configuration of a run: every key, its type, its default and one line on what it means.

A run is described by one `Config`. YAML files in `unistd/configs` set what differs from these defaults; the command
line overrides single keys (`settings.py`). `unistd train --help` prints this file as a table.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from unistd.messages import shown
from unistd.model import TrunkConfig
from unistd.schema import PathText, Section
from unistd.tasks import TASKS, get_task
from unistd.tasks.own import OwnTask, check_name

PARTS = ("trunk", "adapters")  # of a model, beside the encoder and decoder of each task


class TaskOptions(Section):
    """Changes to a task's own shapes; what is left out keeps the published protocol."""

    height: int | None = Field(None, ge=1, le=4096)
    """frame height in pixels"""
    width: int | None = Field(None, ge=1, le=4096)
    """frame width in pixels"""
    frames_in: int | None = Field(None, ge=1, le=1024)
    """frames the model sees"""
    frames_out: int | None = Field(None, ge=1, le=1024)
    """frames the model forecasts"""
    patch: int | None = Field(None, ge=1, le=256)
    """pixels per side of a token"""
    metrics: list[str] | None = None
    """measures of the task, of unistd.metrics.MEASURES; mse is always among them"""
    thresholds: list[float] | None = None
    """of the events that csi, pod, sucr, bias and hss count, in the task's unit, increasing"""


class DataConfig(Section):
    """Where samples come from."""

    root: PathText | None = None
    """folder of real data sets; null: all data are generated"""
    generated: Literal["all"] | list[str] = Field(default=[])
    """tasks whose data may be generated where data.root holds no files of theirs"""
    train_samples: int = Field(4096, ge=1, le=10**6)
    """generated training samples per task (real data sets have their own length)"""
    val_samples: int = Field(64, ge=0, le=10**6)
    """held-out samples per task measured after each epoch; 0: no validation"""
    test_samples: int = Field(256, ge=1, le=10**6)
    """held-out samples per task of the final evaluation (at most the size of the test split)"""
    workers: int = Field(0, ge=0, le=256)
    """processes that load data beside the training process; 0: the training process loads"""
    cache: bool = False
    """keep each sample in memory after its first use (per loading process)"""

    @field_validator("generated")
    @classmethod
    def _generated_exist(cls, generated: str | list[str]) -> str | list[str]:
        for name in generated if isinstance(generated, list) else []:
            get_task(name)
        return generated


class TrunkOptions(Section):
    """A Vision Transformer of one's own; see `unistd.model.TrunkConfig`."""

    width: int = Field(768, ge=1, le=16_384)
    """channels of a token"""
    depth: int = Field(12, ge=1, le=256)
    """number of blocks"""
    heads: int = Field(12, ge=1, le=1024)
    """attention heads"""
    mlp_ratio: float = Field(4.0, gt=0, le=64)
    """hidden width of the MLP as a multiple of `width`"""

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        self.trunk_config()
        return self

    def trunk_config(self) -> TrunkConfig:
        """The same for `UniSTD`; raises ValueError for sizes that do not fit together."""
        return TrunkConfig(**self.model_dump())


class ModelConfig(Section):
    """The network; see `unistd.UniSTD`."""

    trunk: Annotated[str, Field(min_length=1, max_length=200)] | TrunkOptions = "ViT-B-16"
    """name of an open_clip or timm Vision Transformer, or the sizes of one's own, as model.trunk.depth=4"""
    pretrained: PathText | None = None
    """open_clip tag or local file of the trunk's weights (then it is frozen); null: the trunk is trained"""
    qkv_experts: int = Field(6, ge=1, le=256)
    """experts of each of query, key and value"""
    proj_experts: int = Field(2, ge=1, le=256)
    """experts of the attention's output projection"""
    temporal_experts: int = Field(2, ge=1, le=256)
    """experts of the temporal module"""
    temporal_width: int = Field(128, ge=1, le=16_384)
    """hidden width of the temporal module"""
    max_rank: int = Field(8, ge=1, le=256)
    """largest rank of an expert"""
    init_rank: float = Field(4.5, ge=0, le=256)
    """rank of every expert at the start"""
    hidden: int = Field(32, ge=1, le=4096)
    """channels of the encoders' and decoders' convolutions at half the frame's size"""
    checkpointing: bool = False
    """recompute each block in the backward pass instead of keeping its activations: less memory, more time"""
    residual: bool = True
    """the decoder forecasts the change from the last input frame instead of the frame itself"""
    skips: bool = False
    """the decoder also sees the frames and its encoder's first features: see bench/SKILL.md for what that brings"""

    @model_validator(mode="after")
    def _ranks_fit(self) -> Self:
        if self.init_rank > self.max_rank:
            raise ValueError(f"model.init_rank is {self.init_rank}, expected at most model.max_rank = {self.max_rank}")
        return self


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: float = Field(1e-3, gt=0, le=1e3)
    """peak learning rate"""
    weight_decay: float = Field(0.05, ge=0, le=1e3)
    """decay of weight matrices (never of biases, norms or ranks)"""
    warmup: float = Field(0.05, ge=0, le=1)
    """share of all steps in which the rate rises linearly to its peak"""
    final_lr: float = Field(0.01, ge=0, le=1)
    """rate at the last step as a share of the peak; cosine decay in between (1: constant)"""
    clip: float | None = Field(1.0, gt=0, le=1e9)
    """largest norm of the gradient of all parameters together; null: no clipping"""
    loss: Literal["relative", "mse"] = "relative"
    """'mse': mean squared error; 'relative': divided by that of repeating the last frame, so that tasks count alike"""


class RankConfig(Section):
    """How the experts' ranks are learned."""

    recipe: Literal["sampled", "printed"] = "sampled"
    """'sampled': whole ranks drawn from a shrinking window, budget kept exactly; 'printed': the paper's penalty"""
    epochs: int = Field(10, ge=0, le=10**6)
    """epochs of the rank phase; then ranks are rounded, frozen and compacted (0: frozen at once)"""
    lr: float = Field(0.1, gt=0, le=1e3)
    """step size of the ranks ('sampled': of the normalised step; 'printed': of AdamW)"""
    penalty: float = Field(1.0, ge=0, le=1e6)
    """weight of |budget - sum of ranks| ('printed' only)"""
    window: float = Field(3.0, ge=1, le=1e3)
    """width of the window at the start ('sampled' only); it shrinks linearly to 1"""
    window_share: float = Field(0.6, gt=0, le=1)
    """share of the rank phase after which the window is 1 ('sampled' only)"""


class TrainConfig(Section):
    """The loop."""

    epochs: int = Field(90, ge=1, le=10**6)
    """length of the run; an epoch draws `epoch_samples` samples of every task"""
    epoch_samples: int = Field(4096, ge=1, le=10**7)
    """samples of each task in an epoch, whatever the size of its data set, so that tasks count alike"""
    batch_size: int = Field(16, ge=1, le=65_536)
    """samples of each task in a pass, of all processes together"""
    accumulate: int = Field(1, ge=1, le=65_536)
    """passes in a step, each of `batch_size` samples of each task: as a larger batch, in less memory"""
    tasks_per_step: int = Field(0, ge=0, le=256)
    """turns of tasks that a step mixes; 0: as many as tasks"""
    sampling: Literal["round_robin", "proportional", "temperature", "loss_balanced"] = "round_robin"
    """turns of tasks: 'round_robin': all in every round; 'proportional': by the number n of training samples;
    'temperature': by n^(1/temperature); 'loss_balanced': half alike, half by the errors of the epoch before as shares
    of repeating the last frame"""
    temperature: float = Field(2.0, ge=1, le=1e6)
    """of 'temperature' sampling: 1 is proportional, a very large one round_robin"""
    loss_weights: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default={})
    """factors of single tasks' errors in the loss, as train.loss_weights.kth=2; of the others 1"""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """number format, in the words of Lightning Fabric; '16-mixed' (float16, with a scaled loss) is for GPUs without
    bfloat16"""
    compile: Literal["default", "reduce-overhead"] | None = None
    """compile encoders, blocks and decoders with torch.compile, in that mode of it ('reduce-overhead': with CUDA
    graphs); the first steps then take minutes. null: do not"""
    accelerator: Literal["auto", "cpu", "cuda", "gpu", "mps"] = "auto"
    """device, in the words of Lightning Fabric"""
    devices: int = Field(1, ge=1, le=4096)
    """processes on this machine that share each batch, with a GPU each where there are any (torchrun says it itself)"""
    nodes: int = Field(1, ge=1, le=4096)
    """machines; the same command is given on each of them (torchrun says it itself)"""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """how several processes hold the model: each the whole of it, or shards of it (FSDP2)"""
    shard_frozen: bool = True
    """'fsdp': shard the frozen trunk too; false: each process holds it whole, which is faster"""
    threads: int | None = Field(None, ge=1, le=1024)
    """threads of the CPU; null: as many as cores. Small models are fastest with one"""
    seed: int = Field(0, ge=0, lt=2**63)
    """seed of the weights, the order of samples and the generated data"""
    skip_limit: int = Field(3, ge=0, le=10**6)
    """steps in a row that are skipped, changing nothing, where the loss or its gradient is NaN or infinite though the
    data are not; one more stops the run"""
    log_every: int = Field(10, ge=1, le=10**9)
    """steps between two records in log.jsonl and TensorBoard (means over these steps)"""
    checkpoint_every: int = Field(1, ge=1, le=10**6)
    """epochs between two checkpoints (one is also written on Ctrl-C, SIGTERM and at the end)"""
    keep: int = Field(2, ge=1, le=1000)
    """checkpoints that are kept: the last one and those before it (the best one by validation is kept beside them)"""
    patience: int | None = Field(None, ge=1, le=10**6)
    """stop early once as many validations after the rank phase were no better than the best; null: never"""
    init_from: PathText | None = None
    """folder of a run to start from: its trunk and adapters, and what it has of the tasks that both learn; where its
    ranks are frozen, with ranks.epochs=0"""
    only: Annotated[list[str], Field(min_length=1)] | None = None
    """tasks that are trained; the others are kept as they are, validated and measured; null: all"""
    freeze: list[str] = Field(default=[])
    """parts that do not learn: trunk, adapters (experts, routers, temporal modules), or a task, of its encoder and
    decoder"""
    learned_lr_factor: float = Field(1.0, gt=0, le=1)
    """learning rate of what `init_from` brought, as a share of that of fresh tasks"""


class MetricsConfig(Section):
    """Files of the networks that measures take; nothing is ever fetched."""

    lpips_weights: PathText | None = None
    """state dict of LPIPS 0.1, AlexNet and heads: the final evaluation of pictures has `lpips`; null: it has not"""
    fvd_weights: PathText | None = None
    """state dict of I3D, RGB, Kinetics-400: the final evaluation of pictures has `fvd`; null: it has not"""


class Config(Section):
    """One run of `unistd train`."""

    run: PathText = "runs/unistd"
    """folder that receives everything the run writes"""
    tasks: list[str] = Field(default=list(TASKS), min_length=1)
    """tasks learned together (see `unistd tasks`)"""
    task_options: dict[str, TaskOptions] = Field(default={})
    """changes to single tasks, as task_options.kth.height=32"""
    own_tasks: dict[str, OwnTask] = Field(default={})
    """descriptions of tasks of one's own; `tasks` may name YAML files with these keys, as tasks=[kth,mine.yaml]"""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    ranks: RankConfig = RankConfig()
    train: TrainConfig = TrainConfig()
    metrics: MetricsConfig = MetricsConfig()

    @field_validator("tasks")
    @classmethod
    def _tasks_differ(cls, tasks: list[str]) -> list[str]:
        for index, name in enumerate(tasks):
            if name in tasks[:index]:
                raise ValueError(f"expected each task once, found {name!r} twice")
        return tasks

    @model_validator(mode="after")
    def _tasks_exist(self) -> Self:
        for name in self.own_tasks:
            check_name(name)
            if name in TASKS or name not in self.tasks:
                what = (
                    "one of the ten tasks"
                    if name in TASKS
                    else f"not one of the tasks of this run ({', '.join(self.tasks)})"
                )
                raise ValueError(f"own_tasks.{name}: {what}")
            if not self.own_tasks[name].is_complete:
                raise ValueError(
                    f"own_tasks.{name}: form, channels, height, width, patch and range: expected all of them"
                )
        for name in self.tasks:
            if name not in self.own_tasks:
                try:
                    get_task(name)
                except ValueError as error:
                    raise ValueError(f"key 'tasks': {error}") from None
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> Self:
        if self.ranks.epochs > self.train.epochs:
            raise ValueError(
                f"ranks.epochs is {self.ranks.epochs}, expected at most train.epochs = {self.train.epochs}"
            )
        if self.train.patience is not None and self.data.val_samples == 0:
            raise ValueError(
                f"train.patience is {self.train.patience}, but data.val_samples is 0: there are no validations"
            )
        if self.train.tasks_per_step > len(self.learned):
            raise ValueError(
                f"train.tasks_per_step is {self.train.tasks_per_step}, but there are {len(self.learned)} tasks"
            )
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        train, parts = self.train, [*PARTS, *self.tasks]
        for key, names, known in (
            ("only", train.only or [], self.tasks),
            ("freeze", train.freeze, parts),
            ("loss_weights", train.loss_weights, self.learned),
        ):
            if (unknown := next((name for name in names if name not in known), None)) is not None:
                raise ValueError(f"train.{key}: expected any of {', '.join(known)}, found {shown(unknown)}")
        for part in PARTS:
            if part in train.freeze and part in self.tasks:
                raise ValueError(
                    f"train.freeze: {part!r} is a part of the model and a task, expected another task name"
                )
        if "adapters" in train.freeze and self.ranks.epochs:
            raise ValueError(f"train.freeze names adapters, but ranks.epochs is {self.ranks.epochs}, expected 0")
        if {"adapters", *self.learned, *([] if self.model.pretrained else ["trunk"])} <= set(train.freeze):
            raise ValueError(f"train.freeze: [{', '.join(train.freeze)}] leaves nothing to learn")
        if train.learned_lr_factor != 1 and train.init_from is None:
            raise ValueError(f"train.learned_lr_factor is {train.learned_lr_factor}, but there is no train.init_from")
        return self

    @property
    def learned(self) -> list[str]:
        """The tasks that are trained, in their order."""
        return [name for name in self.tasks if self.train.only is None or name in self.train.only]

    @property
    def turns(self) -> int:
        """Turns of tasks in a step, each a batch of one task."""
        return self.train.tasks_per_step or len(self.learned)
