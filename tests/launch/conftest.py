"""What Kubernetes would say of a manifest."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet


@pytest.fixture(scope="session")
def as_jobset() -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    """as_jobset(manifest): what the API has taken of it, defaults added. The models are generated
    from the API's OpenAPI description; they refuse what is of a wrong type or missing."""

    def taken(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        found = JobsetV1alpha2JobSet.from_dict(manifest).to_dict()
        lost = [place for place in _leaves(manifest) if place not in set(_leaves(found))]
        assert not lost, f"unknown fields: {lost}"
        return found

    return taken


def _leaves(value: Any, place: str = "") -> list[str]:
    """The place of every field that holds no further ones."""
    if isinstance(value, Mapping) and value:
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{place}.{key}")]
    if isinstance(value, list) and value:
        return [leaf for i, item in enumerate(value) for leaf in _leaves(item, f"{place}[{i}]")]
    return [place]
