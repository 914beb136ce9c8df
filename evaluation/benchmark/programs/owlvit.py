"""A network of OWL-ViT base/32's shape, with random weights: what it costs is known, what it says is not.

Minderer et al., "Simple Open-Vocabulary Object Detection with Vision Transformers" (2022): CLIP's ViT-B/32 on
768 x 768 px, its text tower for the queries, and two heads on every patch. 153 M parameters.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE_PX = 768
_PATCH_PX = 32
_VISION_WIDTH, _VISION_HEADS, _VISION_MLP = 768, 12, 3072
_TEXT_WIDTH, _TEXT_HEADS, _TEXT_MLP = 512, 8, 2048
_LAYERS = 12
_VOCABULARY, _QUERY_TOKENS = 49408, 16
_COMMON_WIDTH = 512


class _QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class _Block(nn.Module):
    """One layer of CLIP's transformers: attention and two dense layers, each behind a layer norm."""

    def __init__(self, width: int, heads: int, mlp: int, *, is_causal: bool) -> None:
        super().__init__()
        self._heads = heads
        self._is_causal = is_causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dense = nn.Sequential(nn.Linear(width, mlp), _QuickGelu(), nn.Linear(mlp, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.query_key_value(self.norm_1(x)).reshape(batch, tokens, 3, self._heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (B, heads, T, width / heads)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self._is_causal)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))
        refined: Tensor = self.dense(self.norm_2(x))
        return x + refined


class OwlVitShape(nn.Module):
    """The whole network, for one query."""

    def __init__(self) -> None:
        super().__init__()
        patches = (SIDE_PX // _PATCH_PX) ** 2
        self.patches = nn.Conv2d(3, _VISION_WIDTH, _PATCH_PX, stride=_PATCH_PX, bias=False)
        self.class_token = nn.Parameter(torch.randn(_VISION_WIDTH) * 0.02)
        self.vision_positions = nn.Parameter(torch.randn(patches + 1, _VISION_WIDTH) * 0.02)
        self.vision_norms = nn.ModuleList(nn.LayerNorm(_VISION_WIDTH) for _ in range(3))
        self.vision = nn.Sequential(
            *(_Block(_VISION_WIDTH, _VISION_HEADS, _VISION_MLP, is_causal=False) for _ in range(_LAYERS))
        )
        self.tokens = nn.Embedding(_VOCABULARY, _TEXT_WIDTH)
        self.text_positions = nn.Parameter(torch.randn(_QUERY_TOKENS, _TEXT_WIDTH) * 0.02)
        self.text = nn.Sequential(
            *(_Block(_TEXT_WIDTH, _TEXT_HEADS, _TEXT_MLP, is_causal=True) for _ in range(_LAYERS))
        )
        self.text_norm = nn.LayerNorm(_TEXT_WIDTH)
        self.text_projection = nn.Linear(_TEXT_WIDTH, _COMMON_WIDTH, bias=False)
        self.class_projection = nn.Linear(_VISION_WIDTH, _COMMON_WIDTH)
        self.shift, self.scale = nn.Linear(_VISION_WIDTH, 1), nn.Linear(_VISION_WIDTH, 1)
        self.boxes = nn.Sequential(
            nn.Linear(_VISION_WIDTH, _VISION_WIDTH),
            nn.GELU(),
            nn.Linear(_VISION_WIDTH, _VISION_WIDTH),
            nn.GELU(),
            nn.Linear(_VISION_WIDTH, 4),
        )

    def forward(self, images: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            images: (B, 3, 768, 768), normalised.
            query: (1, 16), token ids of one query, padded.

        Returns:
            (B, 576) logits and (B, 576, 4) boxes in [0, 1], one for every patch.
        """
        embedded = self.text_norm(self.text(self.tokens(query) + self.text_positions))[:, -1]
        query_direction = functional.normalize(self.text_projection(embedded), dim=-1)  # (1, 512)
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, 576, 768)
        x = torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1) + self.vision_positions
        x = self.vision_norms[1](self.vision(self.vision_norms[0](x)))
        x = self.vision_norms[2](x[:, 1:] * x[:, :1])  # every patch in the light of the whole
        directions = functional.normalize(self.class_projection(x), dim=-1)
        logits = directions @ query_direction.T + self.shift(x)
        return (logits * (functional.elu(self.scale(x)) + 1)).squeeze(-1), torch.sigmoid(self.boxes(x))
