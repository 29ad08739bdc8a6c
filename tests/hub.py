"""A model hub without a network: small stand-ins in the hub libraries' own caches, under the names that users type."""

import json
from pathlib import Path


class Hub:
    """Stand-ins in `folder`; `env` is the environment of an offline machine that has downloaded all of them before."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.env = {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def model(self, name: str, path: str) -> None:
        """Adds the model folder at `path` under the name `name` ("owner/model")."""
        kept = self.folder / "hub" / f"models--{name.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True)
        (kept / "refs/main").write_text("0" * 40)
        (kept / "snapshots").mkdir()
        (kept / "snapshots" / ("0" * 40)).symlink_to(path)

    def dataset(self, name: str, configuration: str, split: str, rows: list[dict]) -> None:
        """Adds the rows as a split of `name` ("owner/dataset"), in the form in which load_dataset caches them."""
        import datasets
        from datasets.naming import camelcase_to_snakecase

        owner, _, last = name.rpartition("/")
        last = camelcase_to_snakecase(last)
        made = self.folder / f"{last}.jsonl"
        made.write_text("".join(json.dumps(row) + "\n" for row in rows))
        cache = self.folder / "datasets"
        datasets.load_dataset("json", data_files={split: str(made)}, cache_dir=str(cache))
        found = next(cache.glob("json/*/*/*/dataset_info.json")).parent
        cached = cache / f"{owner}___{last}" / configuration / "0.0.0" / found.name
        cached.parent.mkdir(parents=True)
        found.rename(cached)
        for arrow in cached.glob("json-*.arrow"):
            arrow.rename(cached / arrow.name.replace("json-", f"{last}-"))
        info = json.loads((cached / "dataset_info.json").read_text())
        info |= {"config_name": configuration, "dataset_name": last}
        (cached / "dataset_info.json").write_text(json.dumps(info))
