"""The tables and figures of the paper, as parts of a report."""

from pni_tf.reproduce import competitors, figures, other_attacks, white_box
from pni_tf.reproduce.builder import Builder
from pni_tf.reproduce.scales import Scale
from pni_tf.reproduce.tables import Part

_STUDIES = {
    "table1": white_box.table1,
    "table2": white_box.table2,
    "table3": white_box.table3,
    "table4": other_attacks.table4,
    "table5": other_attacks.table5,
    "table6": competitors.table6,
    "table7": other_attacks.table7,
    "mnist": white_box.mnist,
    "figure1": figures.figure1,
    "figure2": figures.figure2,
    "figure3": figures.figure3,
}
STUDIES = tuple(_STUDIES)


def parts_of(study: str, scale: Scale, seeds: int | None = None) -> list[Part]:
    """Returns the parts of a study's report.

    Args:
        study: One of `STUDIES`.
        scale: What to run it on.
        seeds: Number of training seeds, from 0 on; by default what the scale says.
    """
    return _STUDIES[study](Builder(scale, seeds))
