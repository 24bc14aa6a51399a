"""Small files of FEMNIST, as LEAF and TensorFlow Federated release it."""

import json
import sqlite3

import numpy as np


def pictures(labels):
    """White, but for a pixel in the place of the label, of its grey."""
    x = np.ones((len(labels), 784))
    x[range(len(labels)), labels] = np.array(labels) / 255
    return x.tolist()


def write_leaf(path, writers):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {name: {"x": pictures(y), "y": y} for name, y in writers.items()}
    numbers = [len(y) for y in writers.values()]
    content = {"users": [*writers], "num_samples": numbers, "user_data": data}
    path.write_text(json.dumps(content))


def varint(number):
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(pixels, label):
    """A tf.train.Example, byte by byte."""
    numbers = np.asarray(pixels, "<f4").tobytes()
    values = {
        b"label": field(3, field(1, varint(label))),
        b"pixels": field(2, field(1, numbers)),
    }
    entries = [field(1, field(1, k) + field(2, v)) for k, v in values.items()]
    return field(1, b"".join(entries))


def write_tff(path, parts):
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, "
            "serialized_example_proto BLOB NOT NULL)"
        )
        database.executemany(
            "INSERT INTO examples VALUES (?, ?, ?)",
            [
                (split, name, example(pixels, label))
                for split, writers in parts.items()
                for name, labels in writers.items()
                for pixels, label in zip(pictures(labels), labels, strict=True)
            ],
        )
    database.close()
