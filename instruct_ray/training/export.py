"""Trained shards -> a Hugging Face folder that plain transformers or peft loads."""

from pathlib import Path

from instruct_ray.training.zero import ZeroEngine


def save_weights(engine: ZeroEngine, folder: Path, *, is_writer: bool) -> None:
    """Gather the weights and write them as safetensors with their config; all ranks call it, one writes.

    Raises:
        RuntimeError: a tensor came out of the gathering empty.
    """
    state = engine.full_state_dict()
    if not is_writer or state is None:
        return
    empty = [name for name, tensor in state.items() if tensor.numel() == 0]
    if empty:
        raise RuntimeError(f"{len(empty)} weights were not gathered, {empty[0]} among them; the model is not exported")
    engine.engine.module.save_pretrained(folder, state_dict=state)
