"""Which pretrained backbone suits this data: scored, timed and ranked before any training."""

from edgetl.transfer.rank.candidates import Search
from edgetl.transfer.rank.stage import RankOptions, rank

__all__ = ["RankOptions", "Search", "rank"]
