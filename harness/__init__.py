"""One clock, one budget and one set of evals for methods that recognise and draw."""
