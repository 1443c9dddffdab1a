"""What `python -m dali_rsb.doctor` checks; nothing here needs torch or DALI to be importable."""
