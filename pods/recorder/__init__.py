"""The flight recorder: what happened to each pod, bounded, kept for a while after the pod is gone."""
