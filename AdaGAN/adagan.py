"""AdaGAN's boosting loop: one GAN after the other, each trained on what the mixture lacks.

Tolstikhin et al. 2017 (arXiv 1701.02386), Algorithm 1: choose beta; weigh the training points by a
classifier of data against the mixture; train a component on them; G_t = (1 - beta) G_(t-1) + beta
G^c_t.
"""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import collections
import time

import numpy as np

import npu_session
import reweighting
from utils import log, progress

SHOWN = 320  # points and samples in the pictures of the training, and probabilities in the log

# How a component came about: beta, Reweighting or None, seconds of its GAN's training and
# iterations per second of it.
Component = collections.namedtuple("Component", "beta reweighting seconds rate")


def iterations_per_epoch(options):
    """Batches in an epoch, of a GAN and of the classifier."""
    return options.toy_dataset_size // options.batch_size


def iterations(options):
    """GAN iterations of a component."""
    total = options.gan_epoch_num * iterations_per_epoch(options)
    return min(total, options.max_steps or total)


def chunk_ends(options, first, last, *periods):
    """Where session.runs end between two iterations: at multiples of log_every and the periods."""
    periods = [period for period in periods + (options.log_every,) if period > 0]
    while first < last:
        first = min([last] + [(first // period + 1) * period for period in periods])
        yield first


def picture_period(options):
    """Iterations between pictures of the training, 0 for none."""
    return max(options.plot_every, 0) if options.verbose else 0


def check_loop(options, loop):
    """InputError unless the device can run the chunks of a component's training (Loop.check)."""
    first, periods = 0, (iterations_per_epoch(options), picture_period(options))
    for end in chunk_ends(options, 0, iterations(options), *periods):
        loop.check(end - first)
        first = end


class AdaGan:
    """The mixture, the weights of the data, and the steps that extend both.

    Args:
      options: the flags of adagan_gmm.py.
      data: datahandler.Data.
      gan: gan.ToyGan or gan.ToyUnrolledGan. session: one whose variables are initialised.
      draws: of draws.py. figures: figures.Figures, or None for no pictures.
      mixture: mixture.Mixture of the components so far.
      stop: npu_session.Stop; its signal ends a step early.
      record: function (iterations of the whole run, **values) that gets the losses of every epoch.
    """

    def __init__(self, options, data, gan, session, draws, figures, mixture, stop, record):
        self.options, self.data, self.mixture = options, data, mixture
        self._gan, self._session, self._draws = gan, session, draws
        self._figures, self._stop, self._record = figures, stop, record
        self._loss_inputs = None
        self._picture_noise = draws.picture_noise(SHOWN)
        self.data_weights = self._uniform()
        gan.set_points(session, data.points)

    def _uniform(self):
        count = len(self.data.points)
        return np.full(count, 1 / count)

    @property
    def step(self):
        """Components in the mixture."""
        return len(self.mixture.components)

    def make_step(self, done=0):
        """Trains the next component and joins it to the mixture.

        Args:
          done: iterations of its GAN that an earlier session has made.
        Returns:
          (iterations made, Component), or (iterations made, None) if a signal came before the
          last; 0 of a step stopped in the classifier's training, which then starts anew.
        """
        log(f"Running step {self.step} of AdaGAN")
        beta = reweighting.beta(self.options.beta_heur, self.step, self.options.beta_constant,
                                self.options.is_bagging)
        found = self._go_on(beta) if done else self._start(beta)
        if found is None and self._is_weighted():
            return 0, None
        self._draws.weigh(self.data_weights)
        self._warn_of_repeats()
        log("Training GAN")
        started = time.time()
        made = self.train(done)
        seconds = time.time() - started
        if made < iterations(self.options):
            return made, None
        print("Perf: ", seconds, flush=True)
        self._join(beta)
        return made, Component(beta, found, seconds, (made - done) / max(seconds, 1e-9))

    def sample_mixture(self, count, purpose="test"):
        """float32 [count, dim, 1, 1] samples of the mixture; purposes differ in their draws."""
        return self.mixture.sample(count, self._draws.mixture_random(purpose))

    def test_samples(self, count):
        """float32 [count, dim, 1, 1] for further metrics; costs the reference's stream nothing."""
        return self.mixture.sample(count, self._draws.own_random("test"))

    def show_mixture(self, samples):
        """Pictures of the mixture's samples and of the data weights after a step."""
        self._figures.mixture(self.step - 1, samples)
        self._figures.weights(self.step - 1, self.data_weights)

    # ------------------------------------------------------------ data weights

    def _start(self, beta):
        """New variables and data weights for a component.

        Returns:
          Reweighting; None if the data are not weighted or a signal stopped the classifier.
        """
        log("Building the graph...")
        self._draws.start(self.step)
        self._gan.initialise(self._session, self.step)
        log("Building Graph Done.")
        self.data_weights = self._uniform()
        if not self._is_weighted():
            return None
        log("Training a mixture discriminator")
        samples = self.sample_mixture(len(self.data.points), "classifier")
        if not self.train_classifier(samples):
            return None
        return self._reweigh(beta, self.options.verbose)

    def _go_on(self, beta):
        """The same for a component whose variables were restored."""
        self._draws.go_on(self.step)
        self.data_weights = self._uniform()
        return self._reweigh(beta, False) if self._is_weighted() else None

    def _is_weighted(self):
        return self.step > 0 and not self.options.is_bagging

    def train_classifier(self, samples):
        """Trains the classifier of data against samples of the mixture, as many as points.

        Returns:
          False if a signal came before the last iteration.
        """
        options, count = self.options, len(self.data.points)
        per_epoch = iterations_per_epoch(options)
        self._gan.set_samples(self._session, samples)
        for epoch in range(options.mixture_c_epoch_num):
            first = 0
            for end in chunk_ends(options, 0, per_epoch):
                ids = self._draws.classifier_batches(epoch, first, end - first, per_epoch,
                                                     len(samples), count)
                values = self._gan.train_classifier(self._session, ids)
                npu_session.check_finite(values, ("classifier's bias",), first, options.ckpt_dir)
                first = end
                if self._stop.code:
                    return False
        return True

    def _reweigh(self, beta, verbose):
        """Sets data_weights by the classifier; returns the Reweighting."""
        probabilities = self._gan.point_probabilities(self._session)
        ratio = reweighting.density_ratio(probabilities)
        if self.options.weights_heur == "topk":
            found = reweighting.topk(ratio, self.options.topk_constant)
        else:
            found = getattr(reweighting, self.options.weights_heur)(ratio, beta)
        self.data_weights = found.weights
        if verbose:
            self._show_classifier(probabilities)
        if found.message:
            log(found.message)
        if verbose and self._figures:
            self._figures.classifier(self.step, probabilities)
            self._figures.data_weights(self.step, found.weights)
        return found

    @staticmethod
    def _show_classifier(probabilities):
        ordered = np.sort(probabilities)
        for name, shown in (("Correctly", ordered[::-1][:SHOWN]), ("Incorrectly", ordered[:SHOWN])):
            log(f"{name} classified real points probs:")
            log([round(float(probability), 6) for probability in shown])

    def _warn_of_repeats(self):
        if self._draws.choice.repeats(self.options.batch_size):
            log(f"[WARNING] Only {self._draws.choice.support} points have a weight: batches of "
                f"{self.options.batch_size} are drawn with replacement")

    # ------------------------------------------------------------ the component

    def train(self, done=0):
        """Trains the GAN on points drawn by their weights, from iteration `done`.

        Returns:
          Iterations made in all: fewer than iterations(options) if a signal came.
        """
        per_epoch, last = iterations_per_epoch(self.options), iterations(self.options)
        self._loss_inputs = self._drawn_for_losses()
        while done < last:
            epoch, first = divmod(done, per_epoch)
            end = min(last, done + per_epoch - first)
            name = "Epoch {:2d}/{:2d}".format(epoch + 1, self.options.gan_epoch_num)
            with progress(name, end - epoch * per_epoch, first, self.options.use_tqdm) as bar:
                done = self._train_epoch(done, end, bar)
            if self._stop.code:
                break
        return done

    def _train_epoch(self, done, end, bar):
        """Iterations done .. end - 1, all of one epoch; returns where a signal ended them."""
        started, first = time.time(), done
        for stop_at in chunk_ends(self.options, done, end, picture_period(self.options)):
            self._train_chunk(done, stop_at)
            bar.update(stop_at - done)
            done = stop_at
            if self._stop.code:
                break
        if done == end:
            losses = self._gan.losses(self._session, *self._loss_inputs)
            self._record(self.step * iterations(self.options) + done, component=self.step,
                         epoch=(done - 1) // iterations_per_epoch(self.options),
                         iterations_per_second=(done - first) / (time.time() - started), **losses)
        return done

    def _drawn_for_losses(self):
        """Points, by weight, and latent vectors: the same in all epochs, so that losses compare."""
        size, random = self.options.tf_run_batch_size, self._draws.own_random("losses")
        rows = self._draws.choice.draw(random, min(size, self._draws.choice.support))
        return self.data.points[np.resize(rows, size)], self._draws.latent(random, size)

    def _train_chunk(self, first, end):
        """Iterations first .. end - 1, and a picture if one is due."""
        options, per_epoch = self.options, iterations_per_epoch(self.options)
        epoch, start = divmod(first, per_epoch)
        ids, noise = self._draws.batches(epoch, start, end - first, per_epoch)
        values = self._gan.train(self._session, ids, noise)
        names = [f"generator's bias {number}" for number in range(values.shape[1])]
        npu_session.check_finite(values, names, self.step * iterations(options) + first,
                                 options.ckpt_dir)
        period = picture_period(options)
        if period and end % period == 0:
            self._show_training(end, epoch, (end - 1) % per_epoch)

    def _show_training(self, iteration, epoch, batch):
        rows = self._draws.picture_ids(iteration, SHOWN)
        if self._figures:
            samples = self._gan.sample(self._session, self._picture_noise)
            self._figures.training_sample(self.step, epoch, batch, iteration,
                                          self.data.points[rows], samples)

    def _join(self, beta):
        """Stores samples of the trained component and gives it its weight."""
        options, component = self.options, self.step
        log("Saving a sample from the trained component...")
        noise = self._draws.component_noise(options.samples_per_component)
        samples = self._gan.sample(self._session, noise)
        self.mixture.add(samples, beta)
        self.mixture.save_component(options.output_dir)
        self.mixture.save_weights(options.output_dir)
        if self._figures:
            self._figures.component(component, samples[:SHOWN])
        log("Cleaning the graph...")
        log("Closing the session...")
