"""Reports: tables, curves and states. Pure functions of records: equal records, equal bytes."""
