"""The side rooms that a person uses: demo, produce, tail, bench. The pipeline never imports them."""
