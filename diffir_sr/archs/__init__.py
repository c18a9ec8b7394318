"""Networks: the DiffIR family, defined once for every task."""
