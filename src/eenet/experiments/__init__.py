"""The paper's experiments: data sets, recipes, the demo. Nothing above imports this."""
