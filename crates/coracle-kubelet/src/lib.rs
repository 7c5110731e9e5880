//! The node agent: Pod workers, status, node status, the kubelet's HTTPS API.
