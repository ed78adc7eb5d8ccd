"""The source files of a run, and what differs between them and the packs that were prepared earlier."""

from collections.abc import Sequence
from typing import Any

from instruct_ray.config.schema import Config
from instruct_ray.data.open_run import OpenRun
from instruct_ray.data.packs.dataset import PackedDataset
from instruct_ray.data.sources.files import SourceListing, file_digests, list_sources
from instruct_ray.data.sources.source_file import SourceFile
from instruct_ray.errors import InputError
from instruct_ray.run.frozen import read_frozen_section

# Incremented when rows can be read that were quarantined before, and recorded with packs; without a record it is 1.
# It is no part of the packs' digest: of all other rows the packs are the same. 2: chats with tool calls.
READING_VERSION = 2
# Why rows with tool calls were quarantined by version 1.
REASONS_OF_TOOL_ROWS = ("roles", "wrong_type", "no_answer")


def list_run_sources(config: Config) -> SourceListing:
    """Find the files of `data.sources`, and what lies beside them.

    Raises:
        InputError: a file is missing, empty, unreadable or of an unknown format.
    """
    return list_sources(config.data.sources, config.run.storage / "sources")


def find_run_files(config: Config) -> list[SourceFile]:
    """Find the files of `data.sources`; see `list_run_sources`."""
    return list_run_sources(config).files


def check_sources_unchanged(run: OpenRun) -> None:
    """Check that the source files are those that the run was prepared from.

    Raises:
        InputError: names the first file that differs.
    """
    files = find_run_files(run.config)
    if difference := _describe_changed_files(files, file_digests(files), run.packs.manifest):
        raise InputError(difference)


def check_rows_were_readable(packs: PackedDataset) -> None:
    """Check that no row was quarantined, when the packs were prepared, that can be read now.

    Raises:
        InputError: some may have been; counts them.
    """
    if packs.manifest.get("reading_version", 1) >= READING_VERSION:
        return
    reasons = packs.manifest.get("quarantine_reasons", {})
    counts = {reason: reasons[reason] for reason in REASONS_OF_TOOL_ROWS if reasons.get(reason)}
    if counts:
        described = ", ".join(f"{reason} {count}" for reason, count in counts.items())
        raise InputError(
            f"data.sources: an earlier version of instruct_ray quarantined {sum(counts.values())} rows ({described}) "
            f"of {packs.path}; this version can read chats with tool calls, which may be among them. Use another "
            "run.name to prepare them; `instruct-ray tune` goes on with the packs as they are"
        )


def describe_changes(run: OpenRun, files: Sequence[SourceFile], source_digests: Sequence[str]) -> str:
    """Describe why the run's packs have another digest, although no frozen key of the config changed."""
    manifest, contract = run.packs.manifest, run.renderer.contract
    if manifest["contract_digest"] != contract.digest:
        return (
            f"model.base: {run.packs.path} was rendered by contract {manifest['contract_digest'][:12]}, "
            f"{run.base_model.name} now has {contract.digest[:12]}"
        )
    return _describe_changed_files(files, source_digests, manifest) or _describe_changed_options(run.config)


def _describe_changed_files(
    files: Sequence[SourceFile], source_digests: Sequence[str], manifest: dict[str, Any]
) -> str | None:
    prepared_digests = [file["sha256"] for file in manifest["sources"]]
    if len(files) != len(prepared_digests):
        return f"data.sources: {len(files)} files, {len(prepared_digests)} when the run was prepared"
    for file, digest, prepared_digest in zip(files, source_digests, prepared_digests, strict=True):
        if digest != prepared_digest:
            return f"data.sources: {file.uri} changed since the run was prepared"
    return None


def _describe_changed_options(config: Config) -> str:
    """Describe the first option of `data.sources` that differs from the frozen one."""
    frozen_sources = (read_frozen_section(config, "data") or {}).get("sources", [])
    for index, (source, frozen) in enumerate(zip(config.data.sources, frozen_sources, strict=False), start=1):
        for name, value in source.model_dump(mode="json", exclude={"path"}).items():
            if frozen.get(name, value) != value:
                return f"data.sources: source {index}: {name} was {frozen[name]!r}, now {value!r}"
    return "data.sources: the packs were prepared by another version of instruct_ray"
