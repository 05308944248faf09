"""The ways to recover images from measurements: VAE, VAE + sparse deviation, Lasso, OMP, learned.

Each estimator takes the flags of compressed_sensing.py and a list of Batch and yields, batch by
batch, x_hat [B, 784] or, of the wanted images only, [count, 784].
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import functools
import glob
import os
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

import e2e_def
import lasso
import model_def
import npu_session
import recovery
import util
from npu_session import InputError

MODEL_TYPES = ("vae", "vae-sparse", "lasso", "omp", "learned")
PRIOR_SAMPLES = 5000  # images from G whose mean and covariance make the linear estimate

# number: of the batch, from 0. images float32 [B, 784], of which the first `count` are wanted, the
# rest fills the batch up. matrix float64 [784, m], None for projection. y float64 [B, m].
Batch = collections.namedtuple("Batch", "number images count matrix y")


def settings_of(args):
    """The flags that define the VAE objective and its minimisation, as recovery.Settings."""
    return recovery.Settings(*[getattr(args, name) for name in recovery.Settings._fields])


def session_config(args):
    """The session's configuration, the same for all estimators that use TensorFlow."""
    return npu_session.session_config(args, args.output_dir,
                                      iterations_per_loop=args.iterations_per_loop)


def vae(args, batches, after_updates=None):
    """G(z^) of the best start (Bora et al., section 3).

    after_updates: function(batches of this run, updates done, get_x_hat), see
      recovery.Recovery.run.
    """
    size, measurements = batches[0].images.shape[0], batches[0].y.shape[1]
    groups = min(args.batches_per_run, len(batches))
    matrix = batches[0].matrix is not None
    prior = generator_statistics(args) if args.encoder_start else None
    with recovery.Recovery(settings_of(args), args.pretrained_model_dir, groups, size,
                           measurements if matrix else None, args.encoder_start,
                           session_config(args), args.iterations_per_loop) as solver:
        for start in range(0, len(batches), groups):
            wanted = batches[start:start + groups]
            group = wanted + [wanted[-1]] * (groups - len(wanted))
            estimate = solver.run(
                np.stack([batch.matrix for batch in group]) if matrix else None,
                np.stack([batch.y for batch in group]),
                np.stack([random_starts(args, batch) for batch in group]),
                prior and np.stack([linear_estimate(batch, args.noise_std, *prior)
                                    for batch in group]),
                after_updates and functools.partial(after_updates, wanted))
            print_history(args, estimate.history)
            yield from estimate.x_hat[:len(wanted)]


def random_starts(args, batch):
    """z ~ N(0, 1), float64 [restarts, B, 20], fixed by (seed, batch)."""
    random = np.random.RandomState([args.seed, 1, batch.number])
    return random.standard_normal((args.num_random_restarts, len(batch.images), model_def.N_Z))


def print_history(args, history):
    """Upstream's progress line of every --print-iter-th update of every start."""
    settings = settings_of(args)
    for start in range(history.shape[1] if args.print_iter else 0):
        for update in range(0, len(history), args.print_iter):
            total, m_loss1, m_loss2, zp_loss = history[update, start]
            rate = settings.learning_rate * (0.7 ** (update // 50) if settings.decay_lr else 1)
            print(f"rr {start} iter {update} lr {rate} total_loss {total} m_loss1 {m_loss1} "
                  f"m_loss2 {m_loss2} zp_loss {zp_loss}")


def vae_sparse(args, batches, generated=None):
    """G(z^) + v: a sparse deviation v from the generator's range (Dhar et al. 2018).

    v = argmin |y - G(z^) A - v A|^2 / (2 m) + sparse_weight |v|_1, with z^ from `vae`.

    Args:
      generated: G(z^) [count, 784] of each batch where they are known already.
    """
    for batch, images in zip(batches, generated or vae(args, batches)):
        images = images[:batch.count]
        residual = batch.y[:batch.count] - images @ batch.matrix
        deviation = lasso.lasso(batch.matrix, residual, args.sparse_weight, fit_intercept=False)
        yield np.clip(images + deviation, 0, 1)


def lasso_pixels(args, batches):
    """Lasso in the pixel basis, alpha = --lmbd."""
    for batch in batches:
        yield lasso.lasso_estimate(batch.matrix, batch.y[:batch.count], args.lmbd)


def omp_pixels(args, batches):
    """Orthogonal matching pursuit in the pixel basis with --omp-k pixels."""
    for batch in batches:
        yield lasso.omp_estimate(batch.matrix, batch.y[:batch.count], args.omp_k)


def learned(args, batches):
    """The decoder trained together with (or for) its matrix: train_e2e.py."""
    folder, size = weights_folder(args, "learned"), batches[0].images.shape[0]
    with e2e_def.Decoder(folder, args.num_measurements, size, session_config(args)) as decoder:
        for batch in batches:
            yield decoder.run(batch.y)


ESTIMATORS = {"vae": vae, "vae-sparse": vae_sparse, "lasso": lasso_pixels, "omp": omp_pixels,
              "learned": learned}


def check(args):
    """InputError if a model type cannot work with the measurement type."""
    inverting = {"vae-sparse", "lasso", "omp"} & set(args.model_types)
    if args.measurement_type == "project" and inverting:
        raise InputError(f"--model-types {' '.join(sorted(inverting))} needs a matrix, and "
                         "--measurement-type project has none: use vae")
    if "learned" in args.model_types and args.measurement_type not in ("fixed", "learned"):
        raise InputError("--model-types learned decodes its own matrix: use --measurement-type "
                         f"learned or fixed, not {args.measurement_type}")


def weights_folder(args, model_type):
    """Folder of the checkpoint that a recovery needs; None if it needs none."""
    if model_type == "learned":
        return e2e_def.checkpoint_folder(args.e2e_dir, args.num_measurements,
                                         args.measurement_type == "learned")
    return args.pretrained_model_dir if model_type in ("vae", "vae-sparse") else None


def checksum(args, model_type):
    """Checksum of the newest checkpoint a model type uses; None without one.

    That of its index is enough: it holds the checksums of all tensors.
    """
    folder = weights_folder(args, model_type)
    paths = glob.glob(os.path.join(glob.escape(folder), "*.index")) if folder else []
    if not paths:
        return None
    with open(max(paths, key=os.path.getmtime), "rb") as file:
        return zlib.crc32(file.read()) & 0xFFFFFFFF


def check_checkpoints(args, model_types):
    """InputError unless the VAE that any of the model types needs is there; says how to train."""
    folder = args.pretrained_model_dir
    needed = {"vae", "vae-sparse"} & set(model_types)
    if needed and not glob.glob(os.path.join(glob.escape(folder), "*.index")):
        raise InputError(f"no checkpoint of a VAE in --pretrained-model-dir={folder}: train one "
                         f"with python src/main.py --ckpt_dir={folder}, or give the folder of one")


def generated_images(args, z):
    """G(z) of z [N, 20] with the weights of --pretrained-model-dir: float32 [N, 784]."""
    check_checkpoints(args, ["vae"])
    with npu_session.new_graph().as_default():
        z_source = tf.placeholder(tf.float32, [100, model_def.N_Z])
        _, images = model_def.generator(z_source, model_def.xavier_uniform(0))
        with tf.Session(config=session_config(args)) as session:
            npu_session.Checkpoints(args.pretrained_model_dir).restore(session, required=True)
            return util.in_batches(lambda batch: session.run(images, {z_source: batch}), 100, z)


def generator_statistics(args):
    """Mean [784] and covariance [784, 784] of G(z), z ~ N(0, 1)."""
    random = np.random.RandomState([args.seed, 3])
    images = generated_images(args, random.standard_normal((PRIOR_SAMPLES, model_def.N_Z)))
    return images.mean(0), np.cov(images, rowvar=False)


def linear_estimate(batch, noise_std, mean, covariance):
    """Back-projection of y: the best linear estimate for images with G's mean and covariance.

    Returns float64 [B, 784], clipped to [0,1]: what the encoder turns into the extra start.
    """
    matrix = np.eye(len(mean)) if batch.matrix is None else batch.matrix
    projected = covariance @ matrix  # [784, m]
    inner = matrix.T @ projected
    inner[np.diag_indices_from(inner)] += noise_std ** 2 + 1e-6 * np.trace(inner) / len(inner)
    gain = np.linalg.solve(inner, (batch.y - mean @ matrix).T)  # [m, B]
    return np.clip(mean + (projected @ gain).T, 0, 1)
