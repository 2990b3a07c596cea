"""Tests of the measurements under bench/."""
