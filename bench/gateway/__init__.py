"""What gpud costs between clients and engines, beside going there directly and beside another gateway, in one run."""
