"""`instruct-ray learning-curve`: tunes on parts of a run's training rows, and says what more rows would bring."""

from collections.abc import Sequence

from instruct_ray.cli import ray_session
from instruct_ray.cli.stages.prepare import run_prepare
from instruct_ray.cli.stages.tune import run_tune
from instruct_ray.config.schema import Config
from instruct_ray.console import StatusLine

DEFAULT_FRACTIONS = (0.25, 0.5)


def run_learning_curve(config: Config, fractions: Sequence[float]) -> None:
    """Prepare, tune and answer with each part of an evaluated run, and print the curve."""
    with StatusLine("learning curve") as status:
        status("loading libraries")
        from instruct_ray.evidence import learning_curve  # noqa: PLC0415  (takes seconds)
        from instruct_ray.evidence.evaluate import load_evidence  # noqa: PLC0415
        from instruct_ray.evidence.publish import publish_evidence  # noqa: PLC0415

        parts = {fraction: learning_curve.make_part(config, fraction) for fraction in sorted(set(fractions))}
        # Before anything is trained.
        learning_curve.load_whole(config)
        test_digest = load_evidence(config)["test_digest"]
        status("starting Ray")
        # One cluster for all parts, with enough CPUs for each stage.
        ray_session.init_ray_for_training(config.train)
    points = []
    for fraction, part in parts.items():
        print(f"── {fraction:.0%} of the training rows")
        run_prepare(part)
    learning_curve.check_sizes(config, parts.values())
    for fraction, part in parts.items():
        print(f"── {fraction:.0%} of the training rows")
        run_tune(part)
        with StatusLine("learning curve") as status:
            points.append(learning_curve.answer_part(part, fraction, test_digest, status, ray_session.init_ray))
    values = learning_curve.write_learning_curve(config, points)
    for point in values["points"]:
        interval = "" if point["lower"] is None else f" [{point['lower']:.3f}, {point['upper']:.3f}]"
        print(f"  {point['num_rows']:>9,} training rows  accuracy {point['accuracy']:.3f}{interval}")
    print(values["doubling"]["sentence"] if values["doubling"] else values["fit"])
    print(f"report: {publish_evidence(config, lambda message: print(f'  note: {message}'))}")
    print(f"-> {learning_curve.curve_file(config)}")
