"""Check pre-tokenised datasets, every byte and every record:

    python -m data_pipelines.verify runs/tokens/sr runs/tokens/tse

Each shard has to have the SHA-256 that was noted when it was made, and each record the id of its
example: none missing, none twice, none out of place.
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.records import lengths
from data_pipelines.tokenised import NOT_WHOLE, TokenisedDataset, open_tokenised
from quark_jax.commands import guarded
from quark_jax.errors import UserError


def verify(dataset: TokenisedDataset, *, progress: bool = False) -> dict[str, int]:
    """The number of records of each split, all of which were read and are what they should be.

    Raises:
        UserError: that names the first file which is missing, damaged or not what it should be.
    """
    for split, total in dataset.splits.items():
        for shard in dataset.shards(split):
            dataset.check(shard)
        records, noted = dataset.records(split), dataset.lengths(split)
        for index in tqdm(range(total), desc=split, unit=" records", disable=not progress):
            if not np.array_equal(lengths(records[index]), noted[index]):
                raise UserError(f"{dataset.path}: lengths of {split} {index} differ; {NOT_WHOLE}")
    return dict(dataset.splits)


def _main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.verify", description="Check pre-tokenised datasets."
    )
    parser.add_argument("folder", nargs="+", type=Path, help="as given to the tokenising command")
    options = parser.parse_args()

    def run() -> None:
        for folder in options.folder:
            dataset = open_tokenised(folder)
            found = verify(dataset, progress=True)
            shards = sum(len(dataset.shards(split)) for split in found)
            counts = ", ".join(f"{count} {split}" for split, count in found.items())
            print(f"{folder}: {counts} records in {shards} shards; none lost, doubled or damaged")

    return guarded(run)


if __name__ == "__main__":
    raise SystemExit(_main())
