from __future__ import annotations

from niseg_gpu.errors import UserError, suggest


def test_a_message_is_one_line() -> None:
    assert str(UserError("one\n  two\tthree")) == "one two three"


def test_the_nearest_name_is_suggested() -> None:
    assert suggest("remove-spot", ["remove_spots", "kmeans"]) == "; did you mean 'remove_spots'?"
    assert suggest("--n-cluster", ["--n-clusters", "--seed"]) == "; did you mean '--n-clusters'?"


def test_names_with_the_word_in_them_come_first() -> None:
    allowed = ["alpha_iron", "gamma_iron", "zirconium"]
    assert suggest("iron", allowed) == "; did you mean 'alpha_iron' or 'gamma_iron'?"
    assert suggest("spots", ["remove-spots", "kmeans"]) == "; did you mean 'remove-spots'?"


def test_without_a_near_name_all_are_listed() -> None:
    assert suggest("zzz", ["a_step", "kmeans"]) == "; allowed: a_step, kmeans"
