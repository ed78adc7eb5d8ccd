"""The tune stage in the driver: checks, launches and watches the workers."""
