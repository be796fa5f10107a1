"""The colour scale is readable without colour."""

import numpy as np
from PIL import Image

from anomalib_defend.visualization.colours import colour_scale, coloured
from anomalib_defend.visualization.picture import heat_panel


def luminance(colours):
    return colours @ np.array([0.2126, 0.7152, 0.0722])


def test_higher_is_brighter():
    light = luminance(colour_scale().astype(float))
    assert np.all(np.diff(light) > 0)
    assert light[-1] - light[0] > 150
    steps = np.diff(light[::32])
    assert steps.max() < 2 * steps.min()


def test_half_is_grey_between_blue_and_yellow():
    low, half, high = colour_scale()[[0, 128, 255]].astype(int)
    assert low[2] > low[0] + 50
    assert high[0] > high[2] + 50
    assert np.ptp(half) < 20


def test_a_value_has_its_colour_whatever_else_the_map_holds():
    maps = [np.full((4, 4), 200, np.uint8), np.full((4, 4), 200, np.uint8)]
    maps[1][2:] = 10
    first, second = (np.asarray(coloured(Image.fromarray(one))) for one in maps)
    assert np.array_equal(first[0, 0], second[0, 0])
    assert np.array_equal(first[0, 0], colour_scale()[200])


def test_over_any_image_novel_is_brighter_than_normal():
    heat = np.zeros((2, 2), np.uint8)
    heat[:, 1] = 255
    image = Image.fromarray(np.array([[[255] * 3, [0] * 3]] * 2, np.uint8))  # white where the map is dark
    light = luminance(np.asarray(heat_panel(image, heat, None)).astype(float))
    assert np.all(light[:, 1] > light[:, 0])
