from __future__ import annotations

import numpy as np

from models.reference.kmeans import cluster

ONES = np.ones(200, np.float32)


def unit(points: np.ndarray) -> np.ndarray:
    directions: np.ndarray = points / np.linalg.norm(points, axis=1, keepdims=True)
    return directions


def plain_kmeans(points: np.ndarray, weights: np.ndarray, K: int, T: int) -> np.ndarray:
    """Farthest-first start and Lloyd's iterations by cosine, word by word."""
    points = unit(points.astype(np.float64))
    centers = [points[int(weights.argmax())]]
    while len(centers) < K:
        centers.append(points[int((points @ np.array(centers).T).max(1).argmin())])
    labels: np.ndarray = (points @ np.array(centers).T).argmax(1)
    for _ in range(T - 1):
        for k in range(K):
            mine = labels == k
            total = (points[mine] * weights[mine, None]).sum(0)
            if np.linalg.norm(total) > 1e-6:
                centers[k] = total / np.linalg.norm(total)
        labels = (points @ np.array(centers).T).argmax(1)
    return labels


def test_labels_are_those_of_a_plain_statement() -> None:
    rng = np.random.default_rng(0)
    for n, K in ((200, 30), (60, 7), (12, 2)):
        points = rng.normal(size=(n, 4)).astype(np.float32)
        weights = rng.integers(1, 5, n).astype(np.float32)
        labels, _ = cluster(points, weights, K, 15)
        np.testing.assert_array_equal(labels, plain_kmeans(points, weights, K, 15))


def test_length_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(size=(100, 4)).astype(np.float32)
    stretched = points * rng.uniform(0.1, 10, (100, 1)).astype(np.float32)
    np.testing.assert_array_equal(
        cluster(points, ONES[:100], 10, 15)[0], cluster(stretched, ONES[:100], 10, 15)[0]
    )


def test_centers_point_where_their_members_do() -> None:
    rng = np.random.default_rng(2)
    points = rng.normal(size=(200, 4)).astype(np.float32)
    labels, centers = cluster(points, ONES, 8, 50)
    for k in range(8):
        mean = unit(points)[labels == k].mean(0)
        np.testing.assert_allclose(centers[k], mean / np.linalg.norm(mean), atol=1e-5)


def test_few_points_are_clusters_of_their_own() -> None:
    points = np.array([[2, 0], [0, 3], [-1, 0]], np.float32)
    labels, centers = cluster(points, ONES[:3], 30, 15)
    assert labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(centers, unit(points))


def test_nothing_to_cluster() -> None:
    labels, centers = cluster(np.empty((0, 4), np.float32), ONES[:0], 5, 15)
    assert len(labels) == len(centers) == 0


def test_points_all_alike_fall_together() -> None:
    labels, _ = cluster(np.ones((50, 4), np.float32), ONES[:50], 5, 15)
    assert len(set(labels.tolist())) == 1


def test_zero_vectors_do_no_harm() -> None:
    points = np.zeros((40, 4), np.float32)
    points[:20, 0] = 1
    _, centers = cluster(points, ONES[:40], 5, 15)
    assert np.isfinite(centers).all()


def test_points_that_are_no_numbers_stay_in_bounds() -> None:
    points = np.full((40, 4), np.nan, np.float32)
    labels, _ = cluster(points, ONES[:40], 5, 15)
    assert ((labels >= 0) & (labels < 5)).all()
