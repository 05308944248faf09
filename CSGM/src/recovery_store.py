"""Files of recovered images: upstream's folders, pickles and pictures, and what goes with them."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import pickle
import re
import zlib

import numpy as np

import estimators
import metrics
import npu_session
import util
from npu_session import InputError


def result_folder(args, model_type):
    """Upstream's folder of one model's results, below <output_dir>/estimated."""
    weights = [args.mloss1_weight, args.mloss2_weight, args.zprior_weight]
    search = [args.optimizer_type, args.learning_rate, args.momentum, args.decay_lr,
              args.max_update_iter, args.num_random_restarts] + ["encoder"] * args.encoder_start
    parameters = {
        "vae": weights + search, "vae-sparse": weights + search + [args.sparse_weight],
        "lasso": [args.lmbd], "omp": [args.omp_k], "learned": [50, 200]}[model_type]
    return os.path.join(matrix_folder(args), model_type, "_".join(map(str, parameters)))


def matrix_folder(args):
    """Folder of all models' results on the same measurements."""
    kind = args.measurement_type
    detail = {"inpaint": f"inpaint_{args.inpaint_size}",
              "superres": f"superres_{args.superres_factor}"}.get(kind, kind)
    return os.path.join(args.output_dir, "estimated", args.dataset, args.input_type, detail,
                        str(args.noise_std), str(args.num_measurements))


class Store:
    """Saved results of one model: upstream's two pickles, k.png per image, config.json and, when
    all is there, result.json.

    Raises InputError where the folder holds results of the same name made with other settings, and
    where --resume=True finds none or --resume=False some.
    """

    FILES = ("measurement_losses.pkl", "l2_losses.pkl")
    FIXED = ("seed", "batch_size", "num_input_images", "data", "checksum_of_measurements",
             "checksum_of_weights")

    def __init__(self, args, model_type, data_name, batches):
        self.folder, self._args = result_folder(args, model_type), args
        self._losses, self._images, self._started = [{}, {}], {}, False
        self._config = dict(vars(args), data=data_name,
                            checksum_of_measurements=checksum(batches),
                            checksum_of_weights=estimators.checksum(args, model_type))
        if not (args.save_images or args.save_stats):
            return
        os.makedirs(self.folder, exist_ok=True)
        self._before = npu_session.read_json(os.path.join(self.folder, "config.json"))
        if args.resume is True and not self._before:
            raise InputError(f"--resume: there are no results in {self.folder}")
        if args.not_lazy or not self._before:
            return
        self._check_same()
        if args.save_stats:
            self._losses = [self._read(name) for name in self.FILES]

    def _check_same(self):
        if self._args.resume is False:
            raise InputError(f"{self.folder} holds results: go on with --resume=True, replace them "
                             "with --not-lazy, or choose another --output-dir")
        for name in self.FIXED:
            old, new = self._before.get(name), self._config[name]
            if old != new:
                raise InputError(f"{self.folder} holds results made with {name} = {old}, not "
                                 f"{new}: replace them with --not-lazy or choose another "
                                 "--output-dir")

    def _read(self, name):
        path = os.path.join(self.folder, name)
        try:
            with open(path, "rb") as file:
                losses = pickle.load(file)
            return {int(number): float(loss) for number, loss in losses.items()}
        except FileNotFoundError:
            return {}
        except Exception as error:  # damaged pickles raise almost any kind
            raise InputError(f"{path} is damaged ({error}): recover again with "
                             "--not-lazy") from None

    def _start(self):
        """Before the first file: config.json; results that it does not describe are removed."""
        if self._started:
            return
        self._started = True
        if self._args.not_lazy and self._before:
            for name in os.listdir(self.folder):
                if name in self.FILES or re.match(r"\d+\.png$", name):
                    os.remove(os.path.join(self.folder, name))
        npu_session.write_json(os.path.join(self.folder, "config.json"), self._config)

    def complete(self, batches):
        """How many leading batches need no recovery because all that is asked for is there."""
        args = self._args
        if args.image_matrix or args.gif or not args.save_stats:
            return 0
        done, number = 0, 0
        for batch in batches:
            numbers = range(number, number + batch.count)
            if not all(k in losses for losses in self._losses for k in numbers):
                break
            if args.save_images and not all(os.path.exists(self._image_path(k)) for k in numbers):
                break
            done, number = done + 1, number + batch.count
        return done

    def _image_path(self, number):
        return os.path.join(self.folder, f"{number}.png")

    def add(self, batch, result):
        """Takes a batch's result and writes every --checkpoint-iter batches."""
        first = batch.number * self._args.batch_size
        for row in range(batch.count):
            self._losses[0][first + row] = float(result.measurement_loss[row])
            self._losses[1][first + row] = float(result.l2_loss[row])
            self._images[first + row] = result.x_hat[row]
        if (batch.number + 1) % self._args.checkpoint_iter == 0:
            self.write()

    def write(self):
        """Writes what was asked for and not written yet; each file whole or not at all."""
        args = self._args
        if not self._images or not (args.save_images or args.save_stats):
            return
        self._start()
        if args.save_images:
            for number, image in self._images.items():
                util.save_image(self._image_path(number), image)
        self._images = {}
        for name, losses in zip(self.FILES, self._losses) if args.save_stats else ():
            with npu_session.replacing(os.path.join(self.folder, name), "wb") as file:
                pickle.dump(losses, file, protocol=2)

    def finish(self):
        """Writes the rest and the summary, which it returns."""
        self.write()
        summary = self.summary()
        if self._args.save_stats:
            npu_session.write_json(os.path.join(self.folder, "result.json"), summary)
        return summary

    def summary(self):
        """Mean losses of all images with the 95 % bar, and the mean PSNR in dB."""
        measurement, l2 = ([losses[k] for k in sorted(losses)] for losses in self._losses)
        return summary_of(measurement, l2)


def checksum(batches):
    """Checksum of all measurements, rounded so that it does not depend on the order of a sum."""
    total = 0
    for batch in batches:
        total = zlib.crc32(np.round(1000 * batch.y[:batch.count]).astype(np.int64), total)
    return total & 0xFFFFFFFF


def summary_of(measurement_loss, l2_loss):
    """Dict of the means of per-image losses, as result.json has it."""
    l2 = metrics.mean_and_bar(l2_loss)
    return {"images": l2.count, "mean_l2_loss": l2.mean, "l2_standard_error": l2.standard_error,
            "l2_bar": l2.bar, "mean_psnr": metrics.mean_and_bar(metrics.psnr(l2_loss)).mean,
            "mean_measurement_loss": metrics.mean_and_bar(measurement_loss).mean}
