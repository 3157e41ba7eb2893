//! Builders of Kubernetes objects.
