"""The tab WeightWatch in TensorBoard: a dynamic plugin, which TensorBoard finds by the package's entry point."""
