"""Measurements that print JSON; nothing here is a test."""
