"""Lists and image files, good and bad; preprocessing; the pipelines of episodes and evaluation."""
# Licensed under the Apache License, Version 2.0; see LICENSE.
import os
import struct
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import data_generator
import npu_session
from data_generator import CLASSES, DOMAINS, SIDE, Images
from golden_rules import load
from make_standin_data import encoders
from npu_session import InputError

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REAL_PACS = os.path.join(
    os.environ.get("REAL_DATA_DIR") or os.path.join(REPOSITORY, os.pardir, "shared", "data"),
    "pacs")


def png_chunk(kind, content):
    """One chunk of a PNG file."""
    return (struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content) & 0xffffffff))


def png_file(height=SIDE, width=SIDE, colour_type=2):
    """A black PNG; colour_type 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(channels * width)) * height)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", pixels)
            + png_chunk(b"IEND", b""))


def picture(seed=0, height=SIDE, width=SIDE):
    """uint8 [height, width, 3] with smooth random colours."""
    coarse = np.random.RandomState(seed).randint(0, 256, (height // 20 + 1, width // 20 + 1, 3))
    return np.kron(coarse, np.ones((20, 20, 1)))[:height, :width].astype(np.uint8)


def encoded(pixels, ending=".jpg"):
    """Bytes of an image file."""
    with encoders() as encode:
        return encode(pixels, ending)


@pytest.fixture(scope="module")
def jpeg_file():
    """Bytes of an RGB JPEG of 227 x 227."""
    return encoded(picture())


def write(path, content):
    """Writes bytes; returns the path as str."""
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    with open(str(path), "wb") as file:
        file.write(content)
    return str(path)


def lines_of(domain, first=1, per_class=2):
    """Lines of a list with `per_class` images of each class, labels from `first`."""
    return [f"{domain}/{name}/{number}.png {label + first}"
            for label, name in enumerate(CLASSES) for number in range(per_class)]


@pytest.fixture
def pacs(tmp_path):
    """Function (changed={list name: lines}, first=1) -> arguments of read_lists but the domains.

    Writes lists of all domains and the images they name.
    """
    def make(changed=None, first=1, end="\n"):
        contents = {domain: lines_of(domain, first) for domain in DOMAINS}
        contents.update(changed or {})
        for name, lines in contents.items():
            write(tmp_path / "filelist" / f"{name}.txt", (end.join(lines) + end).encode())
            for line in lines:
                entry = line.strip("\ufeff \t").replace("\t", " ").rpartition(" ")[0].strip()
                if entry.count("/") == 2:
                    write(tmp_path / "kfold" / entry, png_file())
        return {"folder": str(tmp_path / "filelist"), "dataroot": str(tmp_path / "kfold")}
    return make


# ---------------------------------------------------------------- preprocessing


def golden_picture(name):
    """uint8 RGB picture of a case of preproc.npz: low repeated 10 times both ways, cut to hw."""
    golden = load("preproc")
    height, width = golden[name + "_hw"]
    return golden[name + "_low"].repeat(10, axis=0).repeat(10, axis=1)[:height, :width]


def assert_golden_input(image, name):
    """Bit-identical values, and the statistics up to the rounding of a sum."""
    golden = load("preproc")
    assert image.dtype == np.float32 and image.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(image[:6, :6], golden[name + "_corner"])
    np.testing.assert_array_equal(image[-6:, -6:], golden[name + "_end"])
    np.testing.assert_array_equal(image[113, ::9], golden[name + "_row"])
    exact = image.astype(np.float64)
    np.testing.assert_allclose([exact.mean(), exact.std(), np.sqrt((exact ** 2).sum())],
                               golden[name + "_stat"], rtol=1e-6)


@pytest.mark.parametrize("name", ["up", "down", "same"])
def test_golden_preprocessing(name, tmp_path):
    """PNG of 100 x 80, 300 x 400 and 227 x 227: decoded, resized, BGR, mean removed."""
    path = write(tmp_path / "a.png", encoded(golden_picture(name), ".png"))
    with tf.Graph().as_default(), tf.Session() as session:
        image = data_generator.preprocess(data_generator.decode(path, resize=True))
        assert_golden_input(session.run(image), name)
        if name == "same":
            image = data_generator.preprocess(data_generator.decode(path, resize=False))
            assert_golden_input(session.run(image), name)


@pytest.mark.parametrize("cached", [False, True])
def test_golden_preprocessing_and_label_through_both_pipelines(cached, tmp_path):
    """All three pictures in one pool, with the label 3."""
    paths = [write(tmp_path / f"{name}.png", encoded(golden_picture(name), ".png"))
             for name in ("up", "down", "same")]
    images = Images(paths, np.full(3, 3, np.int32), not data_generator.check_images(paths))
    assert images.resize
    pixels = data_generator.read_pixels([images]) if cached else None
    for image, label, name in zip(*first_batch(images, 3, pixels)[:2], ("up", "down", "same")):
        assert_golden_input(image, name)
        np.testing.assert_array_equal(label, load("preproc")[name + "_onehot"])
    singles = [Images([path], images.labels[:1], True) for path in paths]
    pixels = data_generator.read_pixels(singles) if cached else None
    (episode, labels), order = episodes_of(singles, 1, 1, 0, 4, pixels, flip_probability=0)
    for step in range(4):
        for role, source in enumerate(order[step]):
            assert_golden_input(episode[step][role, 0], ("up", "down", "same")[source])
    np.testing.assert_array_equal(labels.argmax(-1), 3)


def test_golden_one_hot():
    """*_onehot is that of id 3; a label outside 0..6 gives zeros."""
    with tf.Graph().as_default(), tf.Session() as session:
        rows = session.run(data_generator.one_hot(tf.constant([3, 7])))
    np.testing.assert_array_equal(rows[0], load("preproc")["up_onehot"])
    assert rows.dtype == np.float32 and not rows[1].any()


def test_jpeg_is_decoded_as_by_the_jpeg_decoder(jpeg_file, tmp_path):
    path = write(tmp_path / "a.jpg", jpeg_file)
    with tf.Graph().as_default(), tf.Session() as session:
        ours = session.run(data_generator.decode(path, resize=False))
        resized = session.run(data_generator.decode(path, resize=True))
        theirs = session.run(tf.image.decode_jpeg(tf.io.read_file(path), channels=3))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(ours, resized)
    assert ours.dtype == np.uint8 and resized.dtype == np.float32


def test_preprocess_by_hand():
    with tf.Graph().as_default(), tf.Session() as session:
        found = session.run(data_generator.preprocess(tf.constant([[255, 0, 104]], tf.uint8)))
    np.testing.assert_allclose(found, [[0.061, -116.779, 131.32]], rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- good lists


@pytest.mark.parametrize("first", [0, 1])
def test_labels_count_from_0_or_1(pacs, first):
    lists = data_generator.read_lists(domains=["photo", "sketch"], **pacs(first=first))
    assert list(lists) == ["photo", "sketch"]
    for domain, images in lists.items():
        assert images.labels.dtype == np.int32 and not images.resize
        np.testing.assert_array_equal(images.labels, np.repeat(np.arange(7), 2))
        assert images.paths[2].endswith(f"kfold/{domain}/elephant/0.png")


@pytest.mark.parametrize("first", [0, 1])
def test_the_reference_s_labels_are_1_to_7(pacs, first):
    lists = data_generator.read_lists(domains=DOMAINS, labels="reference", **pacs(first=first))
    np.testing.assert_array_equal(lists["photo"].labels, np.repeat(np.arange(1, 8), 2))


def test_all_lists_together_say_what_labels_count_from(pacs):
    """The held-out list has neither 0 nor 7; the training lists have."""
    held = {"photo_crossval": ["photo/dog/8.png 1", "photo/horse/8.png 5"]}
    for first, shift in ((1, 0), (0, -1)):
        lines = [f"{line[:-1]}{int(line[-1]) + shift}" for line in held["photo_crossval"]]
        lists = data_generator.read_lists(
            domains=["photo"], suffix="_crossval", **pacs({"photo_crossval": lines}, first))
        assert lists["photo"].labels.tolist() == [0, 4]


def test_crlf_blank_lines_blanks_tabs_and_a_byte_order_mark(pacs):
    lines = ["\ufeff" + line + "  " for line in lines_of("photo")[:1]]
    lines += ["", "   "] + ["\t" + line.replace(" ", " \t ") for line in lines_of("photo")[1:]]
    lists = data_generator.read_lists(domains=["photo"], **pacs({"photo": lines}, end="\r\n"))
    assert len(lists["photo"].paths) == 14 and lists["photo"].labels.max() == 6


def test_names_with_blanks(pacs):
    lines = lines_of("photo") + ["photo/dog/my best dog.png 1"]
    lists = data_generator.read_lists(domains=["photo"], **pacs({"photo": lines}))
    assert lists["photo"].paths[-1].endswith("photo/dog/my best dog.png")


def test_other_sizes_are_marked_for_resizing(pacs, tmp_path):
    arguments = pacs()
    write(tmp_path / "kfold" / "photo" / "dog" / "1.png", png_file(height=100))
    lists = data_generator.read_lists(domains=["photo", "sketch"], **arguments)
    assert lists["photo"].resize and not lists["sketch"].resize


def test_shipped_lists_are_the_stand_in_s():
    folder = os.path.join(os.path.dirname(data_generator.__file__), "filelist")
    for domain in DOMAINS:
        for suffix in data_generator.SUFFIXES:
            entries, labels = data_generator.read_list(
                data_generator.list_path(folder, domain, suffix))
            assert set(labels) == set(range(1, 8)) and "standin_" in entries[0]


def test_real_pacs():
    """The subset's counts; every image has 227 x 227 pixels; an episode and an evaluation."""
    if not os.path.isdir(REAL_PACS):
        pytest.skip(f"no PACS in {REAL_PACS} (set REAL_DATA_DIR)")
    folder = os.path.join(REAL_PACS, "filelist")
    lists = data_generator.read_lists(folder, DOMAINS, dataroot=REAL_PACS, at_least=126)
    assert [len(images.paths) for images in lists.values()] == [595, 595, 595, 581]
    assert not any(images.resize for images in lists.values())
    assert data_generator.data_name(REAL_PACS) == "PACS"
    (images, _), _ = episodes_of(list(lists.values())[:3], 6, 1, 10, 1)
    assert images.min() >= -124 and images.max() <= 151.1 and images.std() > 30
    held = data_generator.read_lists(folder, ["cartoon"], "_crossval", dataroot=REAL_PACS)
    assert np.bincount(held["cartoon"].labels).tolist() == [15, 15, 15, 14, 15, 15, 15]


def test_data_is_named(small_data, tmp_path):
    assert data_generator.data_name(os.path.join(small_data, "kfold")) == "stand-in for PACS"
    assert data_generator.data_name(str(tmp_path)) == "PACS"


# ---------------------------------------------------------------- bad lists


def changed_line(number, line):
    """The photo list with another line."""
    lines = lines_of("photo")
    lines[number] = line
    return {"photo": lines}


BAD_LISTS = {
    "no label": (changed_line(3, "photo/dog/1.png"), "line 4 is 'photo/dog/1.png': expected `path"),
    "label not a number": (changed_line(0, "photo/dog/0.png dog"), "line 1 is 'photo/dog/0.png "),
    "negative label": (changed_line(0, "photo/dog/0.png -1"), "line 1 is 'photo/dog/0.png -1'"),
    "label alone": (changed_line(0, "3"), "line 1 is '3'"),
    "endless label": (changed_line(0, "photo/dog/0.png 99999999999"), "line 1 is 'photo/dog/0.png"),
    "not a name": (changed_line(0, "dog/\0.png 1"), "line 1 is 'dog/.x00.png 1'"),
    "label 8": (changed_line(13, "photo/person/1.png 8"), "photo.txt has the label 8: expected 1"),
    "0 and 7": (changed_line(0, "photo/dog/0.png 0"), "labels count from 0 in .*photo.txt but go "
                                                      "up to 7 in "),
    "wrong class folder": (changed_line(0, "photo/horse/7.png 1"),
                           "gives photo/horse/7.png the label of dog"),
    "a class is missing": ({"photo": lines_of("photo")[:-2]}, "no image of the class person"),
    "empty": ({"photo": [""]}, "photo.txt is empty"),
    "ambiguous": ({domain: [line for line in lines_of(domain) if not line.endswith("7")]
                   for domain in DOMAINS}, "labels from 1 to 6 only, which may count from 0 or"),
}


@pytest.mark.parametrize("kind", sorted(BAD_LISTS))
def test_bad_list_is_one_clear_error(pacs, kind):
    changed, message = BAD_LISTS[kind]
    with pytest.raises(InputError, match=message) as caught:
        data_generator.read_lists(domains=["photo"], **pacs(changed))
    assert "\n" not in str(caught.value) and ".txt" in str(caught.value)


def test_missing_list_says_what_writes_it(pacs, tmp_path):
    arguments = pacs()
    with pytest.raises(InputError, match="photo_crossval.txt cannot be read.*make_filelist.py"):
        data_generator.read_lists(domains=["photo"], suffix="_crossval", **arguments)
    write(tmp_path / "filelist" / "cartoon.txt", b"\xff\xfe\x00photo")
    with pytest.raises(InputError, match="cartoon.txt cannot be read"):
        data_generator.read_lists(domains=["photo"], **arguments)


def test_fewer_images_than_a_batch(pacs):
    assert data_generator.read_lists(domains=["photo"], at_least=14, **pacs())
    with pytest.raises(InputError, match="photo.txt has 14 images, fewer than one batch of 15"):
        data_generator.read_lists(domains=["photo"], at_least=15, **pacs())


def test_held_out_images_must_not_be_trained_on(pacs):
    arguments = pacs({"photo_crossval": ["photo/dog/7.png 1", "photo/dog/0.png 1"]})
    with pytest.raises(InputError, match="photo_crossval.txt holds photo/dog/0.png, which is in"):
        data_generator.read_lists(domains=["photo"], suffix="_crossval", **arguments)


def test_missing_image_is_named_with_its_list(pacs, tmp_path):
    arguments = pacs()
    path = str(tmp_path / "kfold" / "photo" / "horse" / "1.png")
    os.remove(path)
    with pytest.raises(InputError, match="photo.txt: the image .*photo/horse/1.png cannot be read "
                                         r"\(No such file"):
        data_generator.read_lists(domains=["photo"], **arguments)
    assert data_generator.read_lists(domains=["sketch"], **arguments)  # photo is not looked at


# ---------------------------------------------------------------- bad images


def bad_images(jpeg):
    """{kind: (file name, content, message)} of files that must be refused."""
    half_png = encoded(picture(), ".png")
    half_png = half_png[:len(half_png) // 2]
    cmyk = jpeg.replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x14", 1)
    frame = cmyk.index(b"\xff\xc0")
    cmyk = cmyk[:frame + 9] + b"\x04" + cmyk[frame + 10:frame + 19] + bytes(3) + cmyk[frame + 19:]
    return {
        "grey PNG": ("a.png", png_file(colour_type=0), "is a grey image: expected RGB"),
        "grey and alpha PNG": ("a.png", png_file(colour_type=4), "is a grey and alpha image"),
        "RGBA PNG": ("a.png", png_file(colour_type=6), "is an RGBA or CMYK image: expected RGB"),
        "grey JPEG": ("a.jpg", grey_jpeg(), "is a grey image: expected RGB"),
        "CMYK JPEG": ("a.jpg", cmyk, "is an RGBA or CMYK image: expected RGB"),
        "text": ("a.jpg", b"<html>404</html>", "is not a JPEG or PNG image"),
        "empty": ("a.png", b"", "is not a JPEG or PNG image"),
        "JPEG without a frame": ("a.jpg", b"\xff\xd8\xff\xd9", "is not a JPEG or PNG image"),
        "PNG signature alone": ("a.png", png_file()[:8], "is not a JPEG or PNG image"),
        "half a JPEG": ("a.jpg", jpeg[:len(jpeg) // 2], "cannot be decoded"),
        "JPEG header alone": ("a.jpg", jpeg[:jpeg.index(b"\xff\xda") + 14], "cannot be decoded"),
        "half a PNG": ("a.png", half_png, "cannot be decoded"),
    }


def grey_jpeg():
    """Bytes of a grey JPEG."""
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(tf.image.encode_jpeg(tf.constant(picture()[..., :1])))


def test_every_bad_image_is_named_in_one_sentence(jpeg_file, tmp_path):
    for kind, (name, content, message) in bad_images(jpeg_file).items():
        good = write(tmp_path / "good.jpg", jpeg_file)
        bad = write(tmp_path / kind.replace(" ", "_") / name, content)
        with pytest.raises(InputError, match=message) as caught:
            data_generator.check_images([good, bad, good])
        assert bad in str(caught.value) and "\n" not in str(caught.value), kind


def test_folder_in_place_of_an_image(tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path} cannot be read"):
        data_generator.check_images([str(tmp_path)])


def test_good_images_pass_and_the_sizes_are_told(jpeg_file, tmp_path):
    paths = [write(tmp_path / "a.jpg", jpeg_file), write(tmp_path / "b.png", png_file())]
    assert data_generator.check_images(paths) is True
    progressive = encoded_progressive()
    paths.append(write(tmp_path / "c.jpg", progressive))
    assert data_generator.check_images(paths, decode_all=True) is True
    paths.append(write(tmp_path / "d.png", png_file(width=228)))
    assert data_generator.check_images(paths) is False


def encoded_progressive():
    """Bytes of a progressive JPEG."""
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(tf.image.encode_jpeg(tf.constant(picture(3)), progressive=True))


def test_what_only_looks_damaged_is_accepted(jpeg_file, tmp_path):
    """Bytes after a PNG's end hide its last chunk from the quick look; decoding settles it."""
    path = write(tmp_path / "a.png", png_file() + bytes(100))
    assert not data_generator.read_header(path).whole
    assert data_generator.check_images([path]) is True
    trailing = write(tmp_path / "a.jpg", jpeg_file + bytes(5000))
    assert data_generator.read_header(trailing).whole


def damaged_inside():
    """A PNG whose pixels are garbled but whose header and end are whole."""
    content = bytearray(encoded(picture(), ".png"))
    middle = len(content) // 2
    content[middle:middle + 40] = bytes(40)
    return bytes(content)


def test_damage_inside_is_found_by_decoding_all(tmp_path):
    path = write(tmp_path / "a.png", damaged_inside())
    assert data_generator.check_images([path]) is True
    with pytest.raises(InputError, match="a.png cannot be decoded"):
        data_generator.check_images([path], decode_all=True)


@pytest.mark.parametrize("cached", [False, True])
def test_file_that_breaks_during_training_is_named(tmp_path, cached):
    good = [write(tmp_path / f"{number}.png", png_file()) for number in range(5)]
    bad = write(tmp_path / "bad.png", damaged_inside())
    sources = [Images(paths, np.zeros(2, np.int32), False)
               for paths in (good[:2], good[2:4], [good[4], bad])]
    with pytest.raises(InputError, match="bad.png cannot be decoded"):
        if cached:
            data_generator.read_pixels(sources)
        with data_generator.naming_files(sum((images.paths for images in sources), [])):
            episodes_of(sources, 2, 1, 0, 1)


# ---------------------------------------------------------------- episodes


def episodes_of(sources, batch_size, seed, first_step, steps, pixels=None, **options):
    """((images, labels) stacked over steps, roles int [steps, 3]) of the pipeline."""
    with npu_session.new_graph().as_default():
        pipeline = data_generator.episodes(sources, batch_size, seed, 1, pixels, **options)
        batch, step = pipeline.next_batch(), tf.placeholder(tf.int64, [])
        roles = data_generator.roles(seed, step)
        assert batch[0].shape.as_list() == [3, batch_size, SIDE, SIDE, 3]
        assert batch[1].shape.as_list() == [3, batch_size, 7]
        with tf.Session() as session:
            session.run(pipeline.initializer, pipeline.feed(first_step))
            batches = [session.run(batch) for _ in range(steps)]
            order = [session.run(roles, {step: first_step + number}) for number in range(steps)]
    return [np.stack(part) for part in zip(*batches)], np.stack(order)


def numbered(counts):
    """Three sources whose pixels say which image it is: (list of Images, uint8 pixels).

    Image n of source d is (d, n, 0) in the left half and (d, n, 99) in the right half.
    """
    pixels = np.zeros((sum(counts), SIDE, SIDE, 3), np.uint8)
    pixels[..., 0] = np.repeat(np.arange(3), counts)[:, None, None]
    pixels[..., 1] = np.concatenate([np.arange(count) for count in counts])[:, None, None]
    pixels[:, :, SIDE // 2:, 2] = 99
    sources = [Images([""] * count, np.arange(count, dtype=np.int32) % 7, False)
               for count in counts]
    return sources, pixels


def read_numbers(images):
    """What numbered() wrote: source, number and whether it is mirrored, int [...]."""
    rgb = np.round(images[..., ::-1] + data_generator.MEAN_RGB).astype(int)
    return rgb[..., 5, 5, 0], rgb[..., 5, 5, 1], rgb[..., 5, 5, 2] == 99


@pytest.fixture(scope="module")
def numbered_run():
    """Source, number, mirrored int [24, 3, 3]; one-hot labels; roles; sources of 7, 9, 4 images."""
    sources, pixels = numbered([7, 9, 4])
    (images, labels), order = episodes_of(sources, 3, 5, 0, 24, pixels)
    return read_numbers(images), labels, order


def test_images_stand_in_the_order_of_the_roles(numbered_run):
    (source, _, _), _, order = numbered_run
    np.testing.assert_array_equal(source, np.repeat(order[:, :, None], 3, axis=2))
    assert len({tuple(row) for row in order}) == 6  # every permutation occurs


def test_labels_belong_to_the_images(numbered_run):
    (_, number, _), labels, _ = numbered_run
    np.testing.assert_array_equal(labels.argmax(-1), number % 7)
    np.testing.assert_array_equal(labels.sum(-1), 1)


def test_each_epoch_holds_each_image_at_most_once_and_orders_differ(numbered_run):
    (_, number, _), _, order = numbered_run
    for source, count in enumerate([7, 9, 4]):
        rows = np.array([number[step, list(order[step]).index(source)] for step in range(24)])
        epochs = rows.reshape(-1, count // 3 * 3)
        assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
        assert set(rows.ravel()) == set(range(count))  # what one epoch leaves out, another has


def test_episodes_can_be_entered_at_any_step():
    sources, pixels = numbered([7, 9, 4])
    whole, _ = episodes_of(sources, 3, 5, 0, 9, pixels, flip_probability=0.5)
    for first in (8, 3, 0):
        part, _ = episodes_of(sources, 3, 5, first, min(3, 9 - first), pixels,
                              flip_probability=0.5)
        for all_steps, entered in zip(whole, part):
            np.testing.assert_array_equal(all_steps[first:first + 3], entered)


def test_episodes_depend_on_the_seed():
    sources, pixels = numbered([7, 9, 4])
    runs = [episodes_of(sources, 3, seed, 0, 2, pixels)[0][0] for seed in (5, 5, 2 ** 31 - 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_episodes_are_the_same_in_every_tensorflow():
    """Found with TensorFlow 1.15; int32 numbers in the pool, by role."""
    with tf.Graph().as_default(), tf.Session() as session:
        rows = [session.run(data_generator.episode_rows(
            [7, 9, 4], 2, 5, tf.constant(step, tf.int64))).tolist() for step in (0, 1, 1000)]
    assert rows == [[[4, 6], [13, 15], [17, 19]], [[1, 0], [8, 7], [18, 16]],
                    [[6, 3], [18, 19], [15, 9]]]


def test_mirrored_images_are_one_in_sixteen(numbered_run):
    """13.5 of 216 are expected; 4 standard deviations are 14."""
    mirrored = numbered_run[0][2]
    assert mirrored.size == 216 and 0 < mirrored.sum() < 28


def test_mirrored_means_left_and_right_exchanged():
    sources, pixels = numbered([1, 1, 1])
    plain, mirrored = (episodes_of(sources, 1, 1, 0, 1, pixels, flip_probability=p)[0][0]
                       for p in (0, 1))
    np.testing.assert_array_equal(plain, mirrored[..., ::-1, :])
    assert not read_numbers(plain)[2].any() and read_numbers(mirrored)[2].all()


def test_files_and_pixels_in_memory_give_the_same_batches(small_data):
    lists = data_generator.read_lists(os.path.join(small_data, "filelist"), DOMAINS[1:],
                                      dataroot=os.path.join(small_data, "kfold"))
    sources = list(lists.values())
    pixels = data_generator.read_pixels(sources, threads=1)
    assert pixels.dtype == np.uint8
    assert len(pixels) == sum(len(images.paths) for images in sources)
    decoded, _ = episodes_of(sources, 6, 3, 7, 2)
    cached, _ = episodes_of(sources, 6, 3, 7, 2, pixels)
    for first, second in zip(decoded, cached):
        np.testing.assert_array_equal(first, second)


def test_the_reference_s_last_label_is_a_zero_row():
    sources, pixels = numbered([2, 2, 2])
    sources = [images._replace(labels=np.array([1, 7], np.int32)) for images in sources]
    (images, labels), _ = episodes_of(sources, 2, 1, 0, 1, pixels)
    number = read_numbers(images)[1]
    assert (labels[number == 1] == 0).all() and (labels[number == 0].argmax(-1) == 1).all()


def test_memory_needed_is_compared_with_what_is_free(monkeypatch):
    sources = [Images(["a"] * 100, None, False)]  # 15 MB, and TensorFlow's copy
    free = {"SC_PAGE_SIZE": 2 ** 20}
    monkeypatch.setattr(os, "sysconf", lambda name: free[name])
    for megabytes, fits in ((62, True), (57, False)):
        free["SC_AVPHYS_PAGES"] = megabytes
        assert data_generator.fits_in_memory(sources) == fits
        assert not data_generator.fits_in_memory([sources[0]._replace(resize=True)])


# ---------------------------------------------------------------- evaluation


def passes(pipelines, batch_size):
    """Images, one-hot labels and validity of each (images, pixels), all with one pipeline."""
    with npu_session.new_graph().as_default():
        pipeline = data_generator.evaluation(
            batch_size, max(len(images.labels) for images, _ in pipelines), 1,
            any(images.resize for images, _ in pipelines), cached=pipelines[0][1] is not None)
        batch, results = pipeline.next_batch(), []
        assert [part.shape.as_list() for part in batch] == [
            [batch_size, SIDE, SIDE, 3], [batch_size, 7], [batch_size]]
        with tf.Session() as session:
            for images, pixels in pipelines:
                session.run(pipeline.initializer, pipeline.feed(images, pixels))
                count = data_generator.batch_count(len(images.labels), batch_size)
                batches = [session.run(batch) for _ in range(count)]
                with pytest.raises(tf.errors.OutOfRangeError):
                    session.run(batch)
                results.append([np.concatenate(part) for part in zip(*batches)])
    return results


def first_batch(images, batch_size, pixels):
    """The only batch of one evaluation."""
    return passes([(images, pixels)], batch_size)[0]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 8])
def test_evaluation_passes_each_image_once_and_fills_up_the_last_batch(batch_size):
    sources, pixels = numbered([3, 5, 8])
    cuts = np.split(pixels, [3, 8])
    for (images, labels, valid), source, own in zip(
            passes(list(zip(sources, cuts)), batch_size), sources, cuts):
        count = len(own)
        assert len(images) == -(-count // batch_size) * batch_size
        np.testing.assert_array_equal(valid, np.arange(len(images)) < count)
        assert valid.dtype == np.float32
        numbers, mirrored = read_numbers(images)[1:]
        assert numbers.tolist() == [min(row, count - 1) for row in range(len(images))]
        assert not mirrored.any()
        np.testing.assert_array_equal(labels.argmax(-1)[:count], source.labels)


def test_evaluation_of_files_equals_that_of_pixels(small_data):
    lists = data_generator.read_lists(os.path.join(small_data, "filelist"), ["photo", "sketch"],
                                      "_crossval", os.path.join(small_data, "kfold"))
    files = passes([(images, None) for images in lists.values()], 5)
    cached = passes([(images, data_generator.read_pixels([images]))
                     for images in lists.values()], 5)
    for first, second in zip(files, cached):
        for ours, theirs in zip(first, second):
            np.testing.assert_array_equal(ours, theirs)
