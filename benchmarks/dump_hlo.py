"""Write the training step of a preset as an HLO module, to be timed by any XLA client on any device.

    python -m benchmarks.dump_hlo PRESET [KEY=VALUE ...] [--out FOLDER] [--image-shape H W C]

FOLDER gets `step.hlo.txt`, the same as `step.hlo.pb` (a serialized HloModuleProto, before any optimization), and
`parameters.json`: the shape and dtype of each parameter in order, first the batch, then the model's variables (weights,
optimizers' state, moving averages, the step). The module returns the losses and the new values of the variables.
"""

import argparse
import json
import re
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("preset")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, help="by default hlo/PRESET")
    parser.add_argument("--image-shape", type=int, nargs=3, metavar=("H", "W", "C"), help="instead of the data set's")
    parser.add_argument("--classes", type=int, default=10, help="of a conditional model, with --image-shape")
    arguments = parser.parse_args()

    import tensorflow as tf

    from gentf.config import resolve
    from gentf.models import build, from_preset, load_data

    config = resolve(arguments.preset, arguments.overrides)
    if arguments.image_shape:
        names = [str(number) for number in range(arguments.classes)]
        model = from_preset(arguments.preset, arguments.overrides, image_shape=arguments.image_shape, class_names=names)
        batch = {"image": tf.zeros((config.train.batch_size, *model.image_shape), tf.uint8)}
        if model.num_classes:
            batch["label"] = tf.zeros((config.train.batch_size,), tf.int32)
    else:
        source = load_data(config)
        model = build(config, source.spec)
        batch = next(iter(source.train.stream(config.train.batch_size, seed=0)))
    step = tf.function(lambda data: model.update(data), jit_compile=True)
    lower = step.experimental_get_compiler_ir(batch)
    text = lower(stage="hlo")
    out = arguments.out or Path("hlo") / config.preset
    out.mkdir(parents=True, exist_ok=True)
    (out / "step.hlo.txt").write_text(text)
    (out / "step.hlo.pb").write_bytes(lower(stage="hlo_serialized"))
    parameters = entry_parameters(text)
    (out / "parameters.json").write_text(json.dumps(parameters, indent=1))
    print(f"{out}: {text.count(chr(10))} lines of HLO, {len(parameters)} parameters")


def entry_parameters(text: str) -> list[dict]:
    """The parameters of the entry computation of an HLO module, in order."""
    entry = text[text.index("\nENTRY") :]
    found = re.findall(r"= (\w+)\[([\d,]*)\]\S* parameter\((\d+)\)", entry)
    ordered = sorted(found, key=lambda item: int(item[2]))
    return [{"dtype": dtype, "shape": [int(n) for n in shape.split(",") if n]} for dtype, shape, _ in ordered]


if __name__ == "__main__":
    main()
