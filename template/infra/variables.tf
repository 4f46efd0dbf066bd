# The values are in environments/ENVIRONMENT.tfvars.

variable "project_id" {
  description = "ID of the Google Cloud project to deploy to."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "project_id must have 6 to 30 lowercase letters, digits or hyphens. Use the ID, not the name or the number."
  }
}

variable "region" {
  description = "Region of the function and the buckets."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[1-9][0-9]?$", var.region))
    error_message = "region must be a region, such as us-east4, not a zone or a multi-region."
  }
}

variable "function_name" {
  description = "Name of the function in cloud_function/. The names of further functions and the IDs of the service accounts start with it."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$", var.function_name))
    error_message = "function_name must have at most 49 lowercase letters, digits or hyphens, and start with a letter."
  }
}

variable "lake_bucket" {
  description = "Name of the data lake bucket, without gs://."
  type        = string
}

variable "messages_bucket" {
  description = "Name of the bucket for the function's messages to Dagster, without gs://."
  type        = string

  validation {
    condition     = var.messages_bucket != var.lake_bucket
    error_message = "messages_bucket must differ from lake_bucket, because messages are deleted after messages_days."
  }
}

variable "sources_bucket" {
  description = "Name of the bucket for the function's source code, without gs://."
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

variable "create_builds_bucket" {
  description = "False if the bucket gcf-v2-sources-NUMBER-REGION exists, because the project has, or had, other functions in this region. Terraform then only grants the build account its role on it."
  type        = bool
  default     = true
}

variable "build_logs" {
  description = "Let the build account write logs, by a role on the project. Without it, a failed build has no log."
  type        = bool
  default     = true
}

variable "messages_days" {
  description = "Days after which messages are deleted. Dagster reads them during the call; they are kept for debugging."
  type        = number
  default     = 7

  validation {
    condition     = var.messages_days >= 1
    error_message = "messages_days must be at least 1, because messages must outlive the call, which may take an hour."
  }
}

variable "functions" {
  description = "For single functions, by the name of their folder: what differs from the variables function_..., and the secrets that the function reads from Secret Manager, as environment variables of the same names."
  type = map(object({
    cpu           = optional(string)
    memory        = optional(string)
    timeout       = optional(number)
    concurrency   = optional(number)
    max_instances = optional(number)
    min_instances = optional(number)
    secrets       = optional(set(string), [])
  }))
  default = {}

  validation {
    condition     = alltrue([for folder in keys(var.functions) : fileexists("${path.module}/../${folder}/tasks/__init__.py")])
    error_message = "Each key of functions must be the folder of a function: one with tasks."
  }

  validation {
    condition     = alltrue([for function in var.functions : coalesce(function.timeout, 1) >= 1 && coalesce(function.timeout, 1) <= 3600])
    error_message = "timeout must be 1 to 3600 seconds."
  }

  validation {
    condition     = alltrue(flatten([for function in var.functions : [for secret in function.secrets : can(regex("^[A-Za-z_][A-Za-z0-9_]*$", secret))]]))
    error_message = "The name of a secret must be possible for an environment variable: letters, digits and underscores."
  }
}

variable "function_timeout" {
  description = "Timeout of a request to a function, in seconds."
  type        = number
  default     = 3600

  validation {
    condition     = var.function_timeout >= 1 && var.function_timeout <= 3600
    error_message = "function_timeout must be 1 to 3600 seconds."
  }
}

variable "function_runtime" {
  description = "Python version of the functions: python313 or python314."
  type        = string
  default     = "python313"

  validation {
    condition     = contains(["python313", "python314"], var.function_runtime)
    error_message = "function_runtime must be python313 or python314."
  }
}

variable "function_ingress" {
  description = "Where requests may come from: ALLOW_ALL, ALLOW_INTERNAL_ONLY or ALLOW_INTERNAL_AND_GCLB. IAM checks each request in any case. Dagster must be able to reach the function."
  type        = string
  default     = "ALLOW_ALL"

  validation {
    condition     = contains(["ALLOW_ALL", "ALLOW_INTERNAL_ONLY", "ALLOW_INTERNAL_AND_GCLB"], var.function_ingress)
    error_message = "function_ingress must be ALLOW_ALL, ALLOW_INTERNAL_ONLY or ALLOW_INTERNAL_AND_GCLB."
  }
}

variable "vpc" {
  description = "Network and subnetwork in the region, which all outgoing requests of the functions go through. If null, they go to the internet directly."
  type = object({
    network    = string
    subnetwork = string
  })
  default = null
}

variable "function_memory" {
  description = "Memory of one instance, such as 512Mi or 4Gi."
  type        = string
  default     = "1Gi"
}

variable "function_cpu" {
  description = "CPUs of one instance. Must be at least 1 if function_concurrency is more than 1."
  type        = string
  default     = "1"
}

variable "function_concurrency" {
  description = "Maximum concurrent requests per instance. With 1, a request has the whole memory of its instance."
  type        = number
  default     = 1

  validation {
    condition     = var.function_concurrency >= 1 && var.function_concurrency <= 1000
    error_message = "function_concurrency must be 1 to 1000."
  }
}

variable "function_max_instances" {
  description = "Maximum number of instances. Multiplied by function_concurrency, it limits the requests in flight. Google rejects further requests, and Dagster retries them for a minute."
  type        = number
  default     = 10
}

variable "function_min_instances" {
  description = "Minimum number of instances. Idle instances are billed."
  type        = number
  default     = 0
}

variable "notification_channels" {
  description = "Channels of Cloud Monitoring to notify if a function responds with errors, logs errors, or has no instance left: projects/.../notificationChannels/ID. Without a channel there are no alert policies."
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
