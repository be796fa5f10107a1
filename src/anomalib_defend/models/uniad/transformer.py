"""The transformer that restores tokens without seeing them or their neighbours.

Shapes: B images, N = gh gw tokens on a grid, D channels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

HEADS, DROPOUT = 8, 0.1
MLP_RATIO = 4
REACH = 3  # tokens to each side that are hidden, 7 x 7 in all
SMALLEST_GRID = 2 * (REACH + 1)  # of which every token sees another


class Restorer(nn.Module):
    """Encoder and decoder layers, post-norm; every attention hides the neighbourhood of the query's place.

    Args:
        grid: Height and width of the grid.
        width: D.
        num_layers: Of the encoder, and of the decoder.
    """

    hidden: Tensor

    def __init__(self, grid: tuple[int, int], width: int, num_layers: int) -> None:
        super().__init__()
        self.grid = grid
        self.columns = nn.Parameter(torch.empty(grid[1], width // 2))
        self.rows = nn.Parameter(torch.empty(grid[0], width // 2))
        encoder, decoder = EncoderLayer(width), DecoderLayer(width, grid[0] * grid[1])
        self.encoder = nn.ModuleList(copy.deepcopy(encoder) for _ in range(num_layers))
        self.decoder = nn.ModuleList(copy.deepcopy(decoder) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("hidden", neighbourhood(grid), persistent=False)
        self._reset()

    def _reset(self) -> None:
        """Linear layers of their own; what is not linear stays the same in all layers, as published."""
        nn.init.uniform_(self.columns)
        nn.init.uniform_(self.rows)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Restored tokens [B, N, D]."""
        height, width = self.grid
        places = torch.cat([self.columns.repeat(height, 1), self.rows.repeat_interleave(width, dim=0)], dim=1)
        for layer in self.encoder:
            tokens = layer(tokens, places, self.hidden)
        output = tokens
        for layer in self.decoder:
            output = layer(output, tokens, places, self.hidden)
        return self.norm(output)


class EncoderLayer(nn.Module):
    """Self-attention and an MLP, each followed by a norm.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = _attention(width)
        self.mlp = _mlp(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Places are added to queries and keys, not to values."""
        where = tokens + places
        tokens = self.norms[0](tokens + self.dropout(_attend(self.attention, where, where, tokens, hidden)))
        return self.norms[1](tokens + self.dropout(self.mlp(tokens)))


class DecoderLayer(nn.Module):
    """Queries of its own attend to the encoder's output, then to the layer's input.

    Args:
        width: D.
        num_tokens: N.
    """

    def __init__(self, width: int, num_tokens: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(num_tokens, width))
        self.to_encoder, self.to_input = _attention(width), _attention(width)
        self.mlp = _mlp(width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, encoded: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Tokens [B, N, D] of the last decoder layer, or the encoder, and of the encoder."""
        queries = self.queries.expand(tokens.shape[0], -1, -1)  # len() would fix the batch of an export
        found = _attend(self.to_encoder, queries + places, encoded + places, encoded, hidden)
        queries = self.norms[0](queries + self.dropout(found))
        found = _attend(self.to_input, queries + places, tokens + places, tokens, hidden)
        queries = self.norms[1](queries + self.dropout(found))
        return self.norms[2](queries + self.dropout(self.mlp(queries)))


def neighbourhood(grid: tuple[int, int]) -> Tensor:
    """Which tokens are within 3 places of which, in both directions: [N, N], bool."""
    row, column = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return ((row[:, None] - row).abs() <= REACH) & ((column[:, None] - column).abs() <= REACH)


def _attention(width: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(width, HEADS, dropout=DROPOUT, batch_first=True)


def _attend(attention: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Tensor:
    return attention(query, key, value, attn_mask=hidden, need_weights=False)[0]


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, MLP_RATIO * width), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(MLP_RATIO * width, width)
    )
