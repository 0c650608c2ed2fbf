"""Sample data: rendered scenes whose truth is known, written in the layouts of the real data sets."""

from .write import DEFAULT_SCENES, SampleDataSummary, write_sample_data

__all__ = ["DEFAULT_SCENES", "SampleDataSummary", "write_sample_data"]
