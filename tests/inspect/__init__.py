"""Looking into a model: times, traces, and the page that shows them."""
