"""replica: a registered version in an engine, checked against the answers that were recorded when it was registered."""

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from instruct_ray.base_model.digest import folder_digest
from instruct_ray.config.registry_names import BASE_MODEL
from instruct_ray.config.serving import ServingConfig
from instruct_ray.data.rendering.renderer import Renderer, load_renderer
from instruct_ray.errors import InputError
from instruct_ray.inference.engine import Engine, SamplingParams, generate_all
from instruct_ray.inference.grammars import choice_grammar
from instruct_ray.inference.loading import model_digest
from instruct_ray.inference.recorded_answers import LiveAnswer, RecordedAnswers, check_live_answers
from instruct_ray.registry.model_registry import ModelRegistry
from instruct_ray.run.folder import MODEL_METADATA_FILE
from instruct_ray.serving.engine_pool import EnginePool
from instruct_ray.serving.replica_messages import VersionInfo
from instruct_ray.tracking.registry_reader import ModelVersion

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BaseFolder:
    """The base model that a version was tuned from."""

    path: Path
    digest: str
    """What `folder_digest` gave when the version was tuned."""


@dataclass
class LoadedVersion:
    """A version that answers requests."""

    info: VersionInfo
    renderer: Renderer
    engine: Engine
    label_grammar: str | None = None
    """What every answer must be, if it must be a label."""
    base: BaseFolder | None = None
    """None if the version does not say it."""
    num_running: int = 0
    """Requests that it answers now. It is closed once it is replaced and they are finished."""


def load_version(
    registry: ModelRegistry, version: ModelVersion, serving: ServingConfig, engines: EnginePool
) -> LoadedVersion:
    """Download a version, load it and check its answers.

    Raises:
        InputError: a file of the version is missing, forbidden or changed, it can't be loaded, or it does not answer as
            it did when it was registered.
    """
    # Temporary, because the model lives in memory: a replica that is killed leaves no copy on the disk.
    label_grammar = None
    with tempfile.TemporaryDirectory() as temporary_dir:
        model_dir = registry.download(version, Path(temporary_dir))
        recorded = RecordedAnswers.load(model_dir)
        renderer = load_renderer(model_dir)
        if serving.only_labels:
            label_grammar = _make_label_grammar(version, renderer, serving.max_new_tokens)
        base = _find_base(model_dir)
        # Never an alias, under which the engine would take other files for these.
        digest = version.manifest_digest or model_digest(model_dir)
        name = f"{version.name}/{version.number}/{digest[:12]}"
        engine = engines.open_version(model_dir, renderer.contract, name)
    try:
        _check_answers(version, recorded, renderer, engine)
    except BaseException:
        engine.close()
        raise
    info = VersionInfo(
        name=version.name,
        version=version.number,
        contract_digest=renderer.contract.digest,
        data_digest=version.tags.get("data_digest"),
        max_context=engine.max_context,
        layout=renderer.contract.layout,
    )
    return LoadedVersion(info, renderer, engine, label_grammar, base)


def load_base(tuned: LoadedVersion, engines: EnginePool) -> LoadedVersion:
    """Load the base model of a version. It gets its prompts as the version does.

    Raises:
        InputError: it is not known, was moved or changed since the version was tuned, or can't be loaded.
    """
    info, base = tuned.info, tuned.base
    if base is None:
        raise InputError(f"{info.name}/{info.version} does not say which base model it was tuned from")
    if not base.path.is_dir():
        raise InputError(f"{info.name}/{info.version} was tuned from the model in {base.path}, which is missing here")
    if (actual := folder_digest(base.path)) != base.digest:
        raise InputError(
            f"{info.name}/{info.version} was tuned from {base.digest[:12]}, but {base.path} now holds {actual[:12]}"
        )
    engine = engines.open_base(base.path, tuned.renderer.contract)
    of_base = info.model_copy(update={"version": BASE_MODEL, "data_digest": None, "max_context": engine.max_context})
    return LoadedVersion(of_base, tuned.renderer, engine, tuned.label_grammar, base)


def _find_base(model_dir: Path) -> BaseFolder | None:
    """The base model that a version's metadata names."""
    metadata_file = model_dir / MODEL_METADATA_FILE
    if not metadata_file.is_file():
        return None
    metadata = json.loads(metadata_file.read_text())
    if "base_folder" not in metadata:
        return None
    return BaseFolder(Path(metadata["base_folder"]), metadata["base_folder_digest"])


def _make_label_grammar(version: ModelVersion, renderer: Renderer, max_new_tokens: int) -> str:
    contract = renderer.contract
    if contract.labels is None:
        raise InputError(
            f"serving.only_labels: the contract of {version.reference} lists no labels; tune it with data.labels"
        )
    longest = max(len(renderer.completion(label)) for label in contract.labels)
    if longest > max_new_tokens:
        raise InputError(f"serving.max_new_tokens={max_new_tokens} would cut labels, of which one has {longest} tokens")
    return choice_grammar(contract, contract.labels)


def _check_answers(version: ModelVersion, recorded: RecordedAnswers | None, renderer: Renderer, engine: Engine) -> None:
    if recorded is None:
        logger.warning("%s has no recorded answers, so what it answers can't be checked", version.reference)
        return
    sampling = SamplingParams(recorded.max_new_tokens, num_top_log_probs=0)
    completions = generate_all(engine, [row.prompt_ids for row in recorded.rows], sampling)
    answers = []
    for completion in completions:
        stop = [renderer.contract.stop_token_id] if completion.finish_reason == "stop" else []
        log_probs = [token.log_probs.chosen for token in completion.tokens if token.log_probs is not None]
        answers.append(LiveAnswer([*completion.token_ids, *stop], log_probs))
    check = check_live_answers(recorded, answers)
    if not check.is_passed:
        raise InputError(f"{version.reference}: {check.sentence}")
    logger.info("%s: %s", version.reference, check.sentence)
