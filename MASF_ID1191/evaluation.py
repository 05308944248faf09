"""Evaluation on whole lists, the selection rules, and what a run reports at its end."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import csv
import os

import numpy as np
import tensorflow.compat.v1 as tf

import data_generator
import figures
import masf_func
import metrics
import npu_session
import utils
from data_generator import CLASSES
from npu_session import InputError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
SHOWN_PER_DOMAIN = 300  # points of one domain in the embeddings' picture
DISTANCE_PAIRS = 4000
# Selection rule -> the accuracy whose first maximum it takes.
RULES = {"best_source": "source_validation_accuracy", "best_target": "target_accuracy"}

Evaluation = collections.namedtuple("Evaluation", "pipeline batch_size tensors")
Outputs = collections.namedtuple("Outputs", "loss logits features embedding labels")


def build(variables, batch_size, lists, threads):
    """The evaluation graph: forward without dropout on batches of any of `lists` (of Images).

    Batches are no larger than the longest list, for what fills one up is computed in vain.
    """
    longest = max(len(images.labels) for images in lists)
    batch_size = min(batch_size, longest)
    pipeline = data_generator.evaluation(batch_size, longest, threads,
                                         any(images.resize for images in lists))
    images, labels, valid = pipeline.next_batch()
    logits, features, embedding = masf_func.evaluation(images, variables)
    tensors = (utils.xent(logits, labels), logits, features, embedding, tf.argmax(labels, 1), valid)
    return Evaluation(pipeline, batch_size, tensors)


def outputs(session, evaluation, images):
    """Passes once through data_generator.Images.

    Returns:
      Outputs, in the order of the images: loss [N] (cross entropies), logits [N, 7], features
      [N, 4096], embedding [N, 256], labels [N] (0..6).
    """
    batches = []
    with data_generator.naming_files(images.paths):
        session.run(evaluation.pipeline.initializer, evaluation.pipeline.feed(images))
        for _ in range(data_generator.batch_count(len(images.labels), evaluation.batch_size)):
            *values, valid = session.run(evaluation.tensors)
            batches.append([value[valid > 0] for value in values])
    return Outputs(*(np.concatenate(parts) for parts in zip(*batches)))


def summary(outputs_of_domain):
    """Mean cross entropy and accuracy (a fraction) of Outputs."""
    accuracy = metrics.accuracy(outputs_of_domain.labels, outputs_of_domain.logits.argmax(1))
    return float(outputs_of_domain.loss.mean(dtype=np.float64)), float(accuracy)


def evaluate(session, evaluation, target_domain, target, held_out):
    """One evaluation.

    Args:
      target: Images of the unseen domain. held_out: {source: Images}, empty if there are no lists.
    Returns:
      {domain: Outputs}, the unseen domain first.
    """
    found = collections.OrderedDict({target_domain: outputs(session, evaluation, target)})
    for domain, images in held_out.items():
        found[domain] = outputs(session, evaluation, images)
    return found


def numbers(found):
    """Loss and accuracy of what evaluate returns.

    Returns:
      dict: target_loss, target_accuracy (a fraction); with held-out lists also
      source_validation_accuracy, the mean over the sources, and .._loss.
    """
    (loss, accuracy), *sources = [summary(part) for part in found.values()]
    values = {"target_loss": loss, "target_accuracy": accuracy}
    if sources:
        loss, accuracy = np.mean(sources, axis=0)
        values.update(source_validation_loss=float(loss),
                      source_validation_accuracy=float(accuracy))
    return values


def selections(records):
    """What three ways to choose the iterate report: {rule: record of the chosen evaluation}.

    last: the last iterate. best_source: the first with the highest accuracy on held-out images of
    the source domains. best_target: the same on the target itself, as the reference reports it:
    chosen on what it is tested on, so an upper limit and no estimate.

    Args:
      records: dicts of metrics.jsonl; those without target_accuracy are passed over.
    """
    found = [record for record in records if "target_accuracy" in record]
    chosen = {"last": found[-1]} if found else {}
    for rule, key in RULES.items():
        if any(key in record for record in found):
            chosen[rule] = max((record for record in found if key in record),
                               key=lambda record, key=key: record[key])
    return {rule: {"iteration": record["step"] - 1,
                   **{key: record[key] for key in sorted(record) if key.endswith("accuracy")}}
            for rule, record in chosen.items()}


def report(found, folder, data_name):
    """Confusion matrix, per-class accuracy, class distances, and the two pictures of them.

    Args:
      found: of evaluate. folder: receives confusion_matrix.png and embeddings.png.
    Returns:
      dict for result.json.
    """
    (target_domain, tested), *sources = found.items()
    matrix = metrics.confusion_matrix(tested.labels, tested.logits.argmax(1), len(CLASSES))
    title = f"{data_name}: {target_domain}, never trained on, {summary(tested)[1]:.1%} right"
    figures.confusion(os.path.join(folder, "confusion_matrix.png"), matrix, CLASSES, title)
    draw_embeddings(os.path.join(folder, "embeddings.png"), found, data_name)
    return {"images_tested": len(tested.labels), "confusion_matrix": matrix.tolist(),
            "per_class_accuracy": dict(zip(CLASSES, metrics.per_class_accuracy(matrix).tolist())),
            **class_distances(tested, [part for _, part in sources])}


def draw_embeddings(path, found, data_name):
    """Principal components of features. found: of evaluate."""
    shown = [(part, np.random.RandomState(0).permutation(len(part.labels))[:SHOWN_PER_DOMAIN])
             for part in found.values()]
    features, labels = (np.concatenate([getattr(part, name)[rows] for part, rows in shown])
                        for name in ("features", "labels"))
    domains = np.repeat(np.arange(len(shown)), [len(rows) for _, rows in shown])
    figures.embeddings(path, features, labels, domains, CLASSES, list(found),
                       f"{data_name}: features (fc7)", unseen=0)


def panels(records):
    """Curves of a run for figures.curves, from the dicts of metrics.jsonl."""
    wanted = {
        "loss": {"sources": "source_loss", "unseen target": "target_loss",
                 "held-out sources": "source_validation_loss"},
        "accuracy": {"unseen target": "target_accuracy",
                     "held-out sources": "source_validation_accuracy"},
        "loss, semantic": {"global alignment": "metatrain_global_loss",
                           "0.005 x triplet": "metatrain_metric_loss"},
    }
    found = {axis: {label: curve(records, key) for label, key in lines.items()
                    if any(key in record for record in records)}
             for axis, lines in wanted.items()}
    return {axis: lines for axis, lines in found.items() if lines}


def curve(records, key):
    """(iterations, values) of one number."""
    return tuple(zip(*[(record["step"] - 1, record[key]) for record in records if key in record]))


def class_distances(target, sources):
    """Mean Euclidean feature distances of target images to source images, of one class and of
    different classes: the paper's measure of clustering across domains; empty without sources.

    Over random pairs, the same in every run.
    """
    if not sources:
        return {}
    features, labels = (np.concatenate([getattr(part, name) for part in sources])
                        for name in ("features", "labels"))
    random = np.random.RandomState(0)
    ours, theirs = (random.randint(count, size=DISTANCE_PAIRS)
                    for count in (len(target.labels), len(labels)))
    same, other = utils.compute_distance(target.features[ours], target.labels[ours],
                                         features[theirs], labels[theirs])
    return {"distance_same_class": same, "distance_other_classes": other}


def images_in(folder):
    """Images of all JPEG and PNG files below a folder, in the order of their paths, labels 0.

    Raises:
      InputError: there are none, or see data_generator.check_images.
    """
    paths = sorted(os.path.join(place, name) for place, _, names in os.walk(folder)
                   for name in names if name.lower().endswith(IMAGE_ENDINGS))
    if not paths:
        raise InputError(f"--predict: no images ({', '.join(IMAGE_ENDINGS)}) below {folder}")
    resize = not data_generator.check_images(paths)
    return data_generator.Images(paths, np.zeros(len(paths), np.int32), resize)


def write_predictions(path, images, logits):
    """CSV with a line per image: path, class, probabilities of all classes. Returns the classes."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    names = [CLASSES[best] for best in logits.argmax(1)]
    with npu_session.replacing(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "class"] + list(CLASSES))
        for image, name, row in zip(images.paths, names, probabilities):
            writer.writerow([image, name] + [f"{value:.6f}" for value in row])
    return names
