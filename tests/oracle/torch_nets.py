"""The equal nets in PyTorch, with the names of parameters that people's checkpoints have."""

from oracle_torch import torch
from torch import nn
from torch.nn import functional as F


class ThreeLayerConvNet(nn.Module):
    def __init__(self, shape, filters, size, hidden, classes, batchnorm):
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, filters, size, padding=(size - 1) // 2)
        self.batchnorm1 = nn.BatchNorm2d(filters) if batchnorm else nn.Identity()
        self.affine2 = nn.Linear(filters * (height // 2) * (width // 2), hidden)
        self.batchnorm2 = nn.BatchNorm1d(hidden) if batchnorm else nn.Identity()
        self.affine3 = nn.Linear(hidden, classes)

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.batchnorm1(self.conv1(x))), 2)
        return self.affine3(torch.relu(self.batchnorm2(self.affine2(x.flatten(1)))))


def conv3x3(channels, width, stride=1):
    return nn.Conv2d(channels, width, 3, stride, 1, bias=False)


class Block(nn.Module):
    def __init__(self, channels, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(channels, width, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth, classes=10, widths=(16, 32, 64)):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(3, widths[0]), nn.BatchNorm2d(widths[0])
        channels = widths[0]
        for stage, width in enumerate(widths, 1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(Block(channels, width, 2 if i == 0 and stage > 1 else 1))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class Stage(nn.Module):
    """conv - batch norm - ReLU - pool - residual, as far as there."""

    def __init__(self, channels, width, pool=True, residual=False):
        super().__init__()
        self.conv, self.bn, self.pool = conv3x3(channels, width), nn.BatchNorm2d(width), pool
        self.residual = Branch(width) if residual else None

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = F.max_pool2d(x, 2) if self.pool else x
        return x if self.residual is None else x + self.residual(x)


class Branch(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class ResNet9(nn.Module):
    def __init__(self, width=64, classes=10):
        super().__init__()
        self.prep = Stage(3, width, pool=False)
        self.layer1 = Stage(width, 2 * width, residual=True)
        self.layer2 = Stage(2 * width, 4 * width)
        self.layer3 = Stage(4 * width, 8 * width, residual=True)
        self.linear = nn.Linear(8 * width, classes, bias=False)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(self.prep(x))))
        return 0.125 * self.linear(F.max_pool2d(x, 4).flatten(1))


class AirbenchBatchNorm(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width, eps=1e-12, momentum=0.4)
        self.weight.requires_grad = False


class AirbenchGroup(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        self.conv1, self.norm1 = conv3x3(channels, width), AirbenchBatchNorm(width)
        self.conv2, self.norm2 = conv3x3(width, width), AirbenchBatchNorm(width)

    def forward(self, x):
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Airbench(nn.Module):
    """As in airbench94_muon.py, in one precision."""

    def __init__(self, widths=(64, 256, 256), classes=10):
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad = False
        groups = [AirbenchGroup(c, w) for c, w in zip((24, *widths[:-1]), widths, strict=True)]
        self.layers = nn.Sequential(nn.GELU(), *groups, nn.MaxPool2d(3))
        self.head = nn.Linear(widths[-1], classes, bias=False)

    def forward(self, x):
        x = self.layers(self.whiten(x)).flatten(1)
        return self.head(x) / x.shape[1]


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d))


class TransformerBlock(nn.Module):
    def __init__(self, dim, heads, hidden):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "fc2": nn.Linear(hidden, dim)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class VisionTransformer(nn.Module):
    """timm's of that name with ``global_pool="avg", class_token=False``.

    Source: timm 1.0.31, models/vision_transformer.py, whose layer norms have an eps of 1e-6 and whose `forward_head`
    pools the tokens, then normalizes, then classifies.
    """

    def __init__(self, patch, dim, depth, heads, classes=10, shape=(3, 32, 32)):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(shape[0], dim, patch, patch)})
        self.pos_embed = nn.Parameter(torch.zeros(1, (shape[1] // patch) * (shape[2] // patch), dim))
        self.blocks = nn.ModuleList([TransformerBlock(dim, heads, 4 * dim) for _ in range(depth)])
        self.fc_norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x.mean(dim=1)))
