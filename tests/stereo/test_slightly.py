"""A camera that is slightly wrong is named, and right ones are not, however uncertain some of their depth is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from stereo.rendered import scene, truth

from lean3r.geometry.consistency import Scene
from lean3r.stereo.dense import with_slightly_wrong
from lean3r.stereo.slightly import slightly_wrong


def test_depth_that_differs_a_little_is_named() -> None:
    batch = truth(3)
    exact = scene(batch, batch.depth[0])
    assert not len(slightly_wrong(Scene.of(exact), exact.conf))
    off = replace(exact, depth=exact.depth * np.array([1, 1.02, 1, 1, 1], np.float32)[:, None, None])
    after = with_slightly_wrong(off, Scene.of(off), off.conf)
    assert [(w["code"], w["views"]) for w in after.info["warnings"]] == [("views-disagree", [exact.names[1]])]
    assert with_slightly_wrong(off, Scene.of(off), off.conf, [1]) is off


def test_what_is_not_sure_and_few_views_say_nothing() -> None:
    batch = truth(3)
    exact = scene(batch, batch.depth[0])
    depth, conf = exact.depth.copy(), exact.conf.copy()
    depth[1, :, :90] *= 1.1
    conf[1, :, :90] = 0.1
    vague = replace(exact, depth=depth, conf=conf)
    assert not len(slightly_wrong(Scene.of(vague), conf))
    for few in (1, 2):
        maps = Scene.of(vague)._replace(depth=np.where(np.arange(5)[:, None, None] < few, depth, 0))
        assert not len(slightly_wrong(maps, conf))
    assert not len(slightly_wrong(maps._replace(depth=0 * depth), conf))
