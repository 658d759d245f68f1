"""PNI adversarial training in PyTorch, from the paper: what ours is timed against.

The recipe `eager` does in each step what the authors' code does: a deep copy of the
network is attacked, the gradients of its weights are computed and thrown away, sigma
goes through the CPU, tensors are NCHW. `tuned` does the same arithmetic without the
waste: no copy, no gradients of weights in the attack, `channels_last`, `torch.compile`
and fused SGD.
"""

import copy
import functools
import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
WEIGHT_DECAY = 2e-4


class _Noisy:
    """Layer-wise noise on the weight of a layer."""

    def __init__(self, *args, item_sigma, **kwargs):
        super().__init__(*args, **kwargs)
        self.alpha = nn.Parameter(torch.tensor([0.25]))
        self.item_sigma = item_sigma

    def noisy_weight(self):
        weight = self.weight
        with torch.no_grad():
            sigma = weight.std().item() if self.item_sigma else weight.std()
            eta = torch.randn_like(weight) * sigma
        return weight + self.alpha * eta


class NoisyConv(_Noisy, nn.Conv2d):
    """Convolution with noise on its kernel, and "same" padding."""

    def __init__(self, inputs, outputs, size, stride, **kwargs):
        super().__init__(inputs, outputs, size, stride, size // 2, bias=False, **kwargs)

    def forward(self, x):
        return self._conv_forward(x, self.noisy_weight(), self.bias)


class NoisyLinear(_Noisy, nn.Linear):
    """Dense layer with noise on its kernel."""

    def forward(self, x):
        return F.linear(x, self.noisy_weight(), self.bias)


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut: option A, or a projection."""

    def __init__(self, inputs, outputs, stride, projection, conv):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), _bn(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3, 1), _bn(outputs)
        self.stride, self.projection = stride, None
        if projection and stride > 1:
            self.projection = nn.Sequential(
                conv(inputs, outputs, 1, stride), _bn(outputs)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.projection is not None:
            x = self.projection(x)
        elif self.stride > 1:
            x = F.avg_pool2d(x, 1, self.stride)
            x = torch.cat([x, torch.zeros_like(x)], 1)
        return F.relu(x + y)


class Network(nn.Module):
    """The CIFAR ResNets of depth 6n + 2, and ResNet-18 for small images."""

    def __init__(self, name, width, item_sigma):
        super().__init__()
        conv = functools.partial(NoisyConv, item_sigma=item_sigma)
        if name == "resnet18":
            channels, blocks, stages, projection = round(64 * width), 2, 4, True
        else:
            blocks = (int(name.removeprefix("resnet")) - 2) // 6
            channels, stages, projection = round(16 * width), 3, False
        self.stem, self.bn = conv(3, channels, 3, 1), _bn(channels)
        layers, inputs = [], channels
        for stage, block in itertools.product(range(stages), range(blocks)):
            outputs = channels * 2**stage
            stride = 2 if stage and not block else 1
            layers.append(Block(inputs, outputs, stride, projection, conv))
            inputs = outputs
        self.blocks = nn.Sequential(*layers)
        self.logits = NoisyLinear(inputs, 10, item_sigma=item_sigma)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, x):
        x = F.relu(self.bn(self.stem((x - self.mean) / self.std)))
        return self.logits(self.blocks(x).mean((2, 3)))


def _bn(channels):
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)


class Trainer:
    """One training step of the paper's recipe on one batch of random images.

    Args:
        settings: Has `model`, `width`, `attack_steps`, `threads`, `device` (`"cpu"` or
            `"cuda"`) and `precision` (`"float32"`, `"tf32"`, `"bfloat16"` or
            `"float16"`).
        recipe: `"eager"` or `"tuned"`.
        images, labels: NumPy arrays `[N, H, W, C]` in [0, 1], and integers `[N]`.
    """

    def __init__(self, settings, recipe, images, labels):
        torch.manual_seed(0)
        torch.set_num_threads(settings.threads)
        torch.backends.cuda.matmul.allow_tf32 = settings.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = settings.precision == "tf32"
        torch.backends.cudnn.benchmark = True
        self.tuned = recipe == "tuned"
        self.device = torch.device(settings.device)
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        self.half = half.get(settings.precision)
        self.scaler = torch.amp.GradScaler(
            settings.device, enabled=settings.precision == "float16"
        )
        self.epsilon, self.step_size, self.steps = 0.031, 0.01, settings.attack_steps
        self.model = Network(settings.model, settings.width, item_sigma=not self.tuned)
        self.model.to(self.device)
        self.images = torch.tensor(images).permute(0, 3, 1, 2).to(self.device)
        self.labels = torch.tensor(labels).to(self.device)
        self.images = self.images.contiguous()
        if self.tuned:
            self.model.to(memory_format=torch.channels_last)
            self.images = self.images.to(memory_format=torch.channels_last)
        named = list(self.model.named_parameters())
        alphas = [value for name, value in named if name.endswith("alpha")]
        others = [value for name, value in named if not name.endswith("alpha")]
        self.optimizer = torch.optim.SGD(
            [{"params": others, "weight_decay": WEIGHT_DECAY}, {"params": alphas}],
            lr=0.1,
            momentum=0.9,
            nesterov=True,
            fused=True if self.tuned else None,
        )
        self.forward = torch.compile(self.model) if self.tuned else self.model
        self.attacked = torch.compile(self._attacked)

    def _autocast(self):
        return torch.autocast(self.device.type, self.half, enabled=bool(self.half))

    def _loss(self, logits, labels):
        return F.cross_entropy(logits.float(), labels)

    def _attacked(self, variables, x):
        return functional_call(self.model, variables, (x,))

    def _attack(self, labels):
        if self.tuned:
            # Detached, or the compiled backward pass would compute their gradients.
            named = itertools.chain(
                self.model.named_parameters(), self.model.named_buffers()
            )
            network = functools.partial(
                self.attacked, {name: value.detach() for name, value in named}
            )
            self.model.eval()
        else:
            network = copy.deepcopy(self.model).eval()
        lower, upper = self.images - self.epsilon, self.images + self.epsilon
        noise = torch.empty_like(self.images).uniform_(-self.epsilon, self.epsilon)
        x = (self.images + noise).clamp(0, 1)
        for _ in range(self.steps):
            x.requires_grad_()
            with self._autocast():
                logits = network(x)
            loss = self._loss(logits, labels)
            if self.tuned:
                (gradient,) = torch.autograd.grad(loss, x)
            else:
                loss.backward()
                gradient = x.grad
            with torch.no_grad():
                x = x + self.step_size * gradient.sign()
                x = torch.minimum(torch.maximum(x, lower), upper).clamp(0, 1)
        self.model.train()
        return x.detach()

    def step(self):
        """Takes one step and returns its loss."""
        self.model.train()
        with self._autocast():
            clean = self.forward(self.images)
        clean_loss = self._loss(clean, self.labels)
        adversarial = self._attack(clean.detach().argmax(1))
        with self._autocast():
            logits = self.forward(adversarial)
        loss = 0.5 * clean_loss + 0.5 * self._loss(logits, self.labels)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.item()
