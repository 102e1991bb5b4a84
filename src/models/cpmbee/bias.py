"""Where the tokens of CPM-Bee stand to each other: distances in buckets, relations between segments."""

import math

import torch

from models.cpmbee.configuration import CpmBeeConfig


def distance_buckets(distance: torch.Tensor, buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket (0 to buckets - 1) of key position - query position: near ones alone, far ones by their logarithm.

    The upper half is for keys behind the query's position. The logarithm is taken in float32, as the checkpoints' was.
    """
    half = buckets // 2
    near = half // 2
    size = distance.abs()
    ratio = torch.log(size.clamp(min=near).float() / near) / math.log(max_distance / near)
    far = (near + (ratio * (half - near)).int()).clamp(max=half - 1)
    return half * (distance > 0) + torch.where(size < near, size, far)


def segment_relations(table, query_segment, query_segments, query_offset, key_segment) -> torch.Tensor:
    """Relation of every query's segment to every key's, (batch, queries, keys).

    `table` (batch, entries) holds the relations of a row's samples one after the other; `query_segments` (batch,
    queries) is the number of segments of the query's sample, `query_offset` where its relations begin.
    """
    index = (query_segment * query_segments + query_offset)[:, :, None] + key_segment[:, None, :]
    index = index.clamp(max=table.shape[1] - 1)  # pairs of different samples point anywhere; the caller replaces them
    return table.gather(1, index.flatten(1)).view_as(index)


def bias_index(config: CpmBeeConfig, distance: torch.Tensor, relation: torch.Tensor) -> torch.Tensor:
    """Row of the position bias for each pair of tokens: by distance within a segment, by relation between segments."""
    buckets = config.position_bias_num_buckets
    near = distance_buckets(distance, buckets, config.position_bias_max_distance)
    return torch.where(relation == 0, near, buckets + relation - 1)


def bias_tables(config: CpmBeeConfig, relations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as two tables: rows by a query's and a key's segment, of relations as many, -1 within one segment; and
    rows within a segment by the distance, from -max_distance to max_distance, beyond which nothing changes.
    """
    far, buckets = config.position_bias_max_distance, config.position_bias_num_buckets
    apart = torch.where(relations == 0, -1, buckets + relations - 1)
    distances = torch.arange(-far, far + 1, device=relations.device)
    return apart, distance_buckets(distances, buckets, far)
