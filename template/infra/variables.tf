# The values are in environments/ENVIRONMENT.tfvars. Some of the other files have variables, too.

variable "project_id" {
  description = "ID of the Google Cloud project to deploy to."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must have 6 to 30 lowercase letters, digits or hyphens. Use the ID, not the name or the number."
  }
}

variable "region" {
  description = "Region of all resources."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[1-9][0-9]?$", var.region))
    error_message = "region must be a region, such as us-east4, not a zone or a multi-region."
  }
}

variable "lake_bucket" {
  description = "Name of the data lake bucket, without gs://."
  type        = string
}

variable "messages_bucket" {
  description = "Name of the bucket for the tasks' messages to Dagster, without gs://."
  type        = string

  validation {
    condition     = var.messages_bucket != var.lake_bucket
    error_message = "messages_bucket must differ from lake_bucket, because messages are deleted after messages_days."
  }
}

variable "sources_bucket" {
  description = "Name of the bucket for the tasks' source code, without gs://."
  type        = string
}

variable "dual_region" {
  description = "Keeps the data lake and the messages in a second region, too: the location, such as EU, that contains both, and the second region. A bucket cannot be moved later."
  type = object({
    location      = string
    second_region = string
  })
  default = null
}

variable "kms_key" {
  description = "ID of a Cloud KMS key in the region, which encrypts the buckets and the images: projects/.../cryptoKeys/NAME. If null, Google manages the keys."
  type        = string
  default     = null

  validation {
    condition     = var.kms_key == null || can(regex("^projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+$", var.kms_key))
    error_message = "kms_key must be projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY."
  }

  validation {
    condition     = var.kms_key == null || var.dual_region == null
    error_message = "kms_key and dual_region cannot both be set: no key is in the location of all buckets."
  }
}

variable "build_logs" {
  description = "Let the build account write logs, by a role on the project. Without it, a failed build has no log."
  type        = bool
  default     = true
}

variable "messages_days" {
  description = "Days after which messages are deleted. Dagster reads them while the task runs; they are kept for debugging."
  type        = number
  default     = 7

  validation {
    condition     = var.messages_days >= 1
    error_message = "messages_days must be at least 1, because messages must outlive the task."
  }
}

variable "vpc" {
  description = "Network and subnetwork in the region, which all outgoing requests of the tasks go through. If null, they go to the internet directly."
  type = object({
    network    = string
    subnetwork = string
  })
  default = null
}

variable "environment_variables" {
  description = "More environment variables of what runs the tasks, by their names, such as OTEL_SERVICE_NAME. They are not secret."
  type        = map(string)
  default     = {}
}

variable "notification_channels" {
  description = "Channels of Cloud Monitoring that alert policies notify: projects/.../notificationChannels/ID. Without a channel there are no alert policies."
  type        = list(string)
  default     = []
}

variable "orchestrator_users" {
  description = "Users and groups who may impersonate Dagster's service account from their own machine, such as user:name@example.com."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for user in var.orchestrator_users : can(regex("^(user|group|serviceAccount):[^@ ]+@[^@ ]+$", user))])
    error_message = "Each of orchestrator_users must be user:, group: or serviceAccount:, followed by an email address."
  }
}
