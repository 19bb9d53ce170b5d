"""ResNet-50 in plain torch.nn (He et al. 2015, the v1.5 variant: the stride sits in the 3x3 convolution)."""

from __future__ import annotations

from torch import Tensor, nn

EXPANSION = 4  # a bottleneck's last convolution is this many times as wide as its first


def _conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    # torch's default makes activations vanish over 50 layers of untrained weights.
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut: (B, inputs, H, W) -> (B, 4 * width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.body = nn.Sequential(
            _conv_norm(inputs, width, 1),
            nn.ReLU(inplace=True),
            _conv_norm(width, width, 3, stride),
            nn.ReLU(inplace=True),
            _conv_norm(width, outputs, 1),
        )
        # The sum of body and shortcut would double the variance in each block; a trained net learns not to.
        nn.init.constant_(self.body[-1][1].weight, 0.5)
        same_shape = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same_shape else _conv_norm(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.body(x) + self.shortcut(x))


def resnet(blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> nn.Sequential:
    """A residual net of bottlenecks, images (B, 3, H, W) -> logits (B, classes); the defaults make it ResNet-50."""
    layers: list[nn.Module] = [_conv_norm(3, width, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1)]
    channels = width
    for stage, count in enumerate(blocks):
        stage_width = width * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(Bottleneck(channels, stage_width, stride))
            channels = stage_width * EXPANSION
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))
