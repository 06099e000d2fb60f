from tests.support.runs import reading
from weightwatch.report.layer_map import LayerMap


def test_a_map_has_a_column_for_each_check_after_the_first_step_and_a_row_for_each_layer() -> None:
    layers = LayerMap("evil")
    assert layers.figure() is None
    for step in (0, 2, 4):
        layers.add(reading(step, 0.1, layers=[0.1 * step, -0.5, 0.0]))
    figure = layers.figure()
    assert figure is not None
    (image,) = figure.axes[0].get_images()
    assert image.get_array().tolist() == [[0.2, 0.4], [-0.5, -0.5], [0.0, 0.0]]
    assert image.get_clim() == (-0.5, 0.5)


def test_a_map_of_another_direction_has_no_column() -> None:
    layers = LayerMap("good")
    layers.add(reading(2, 0.1, layers=[0.1]))
    assert layers.figure() is None


def test_of_many_checks_those_that_stand_out_are_kept_in_even_stretches() -> None:
    layers = LayerMap("evil")
    for step in range(1, 4001):
        layers.add(reading(step, 0.1, layers=[0.9 if step == 1234 else 0.1]))
    figure = layers.figure()
    assert figure is not None
    (values,) = figure.axes[0].get_images()[0].get_array()
    assert len(values) == 1000  # stretches of 4 checks
    assert list(values).index(0.9) == 1234 // 4
