"""Thin routes: parse, walk the flow, return."""
