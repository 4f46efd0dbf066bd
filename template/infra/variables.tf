# What an environment is made of. Each one gives its values in environments/ENVIRONMENT.tfvars.

variable "project_id" {
  description = "ID of the Google Cloud project that everything is made in."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project_id))
    error_message = "A project ID has 6 to 30 lowercase letters, digits and hyphens. It is not the project's name or number."
  }
}

variable "region" {
  description = "Region of the function and the buckets."
  type        = string

  validation {
    condition     = can(regex("^[a-z]+-[a-z]+[1-9][0-9]?$", var.region))
    error_message = "Name a region, such as us-east4: not a zone, and not a multi-region."
  }
}

variable "function_name" {
  description = "Name of the cloud function. Names of service accounts are made from it."
  type        = string

  validation {
    condition     = can(regex("^[a-z]([a-z0-9-]{0,47}[a-z0-9])?$", var.function_name))
    error_message = "A function's name has at most 49 lowercase letters, digits and hyphens, and begins with a letter."
  }
}

variable "lake_bucket" {
  description = "Bucket of the data lake, without gs://."
  type        = string
}

variable "messages_bucket" {
  description = "Bucket that brings the function's messages to Dagster, without gs://."
  type        = string

  validation {
    condition     = var.messages_bucket != var.lake_bucket
    error_message = "Messages need a bucket of their own: theirs is emptied after some days."
  }
}

variable "sources_bucket" {
  description = "Bucket that the function's sources are uploaded to, without gs://."
  type        = string
}

variable "messages_days" {
  description = "Days after which messages are deleted. Dagster has read them by then: they are kept for those who look for a fault."
  type        = number
  default     = 7

  validation {
    condition     = var.messages_days >= 1
    error_message = "A call may take an hour, and its messages must live longer: at least 1 day."
  }
}

variable "function_timeout" {
  description = "Seconds that a call of the function may take."
  type        = number
  default     = 3600

  validation {
    condition     = var.function_timeout >= 1 && var.function_timeout <= 3600
    error_message = "Google Cloud allows 1 to 3600 seconds."
  }
}

variable "function_memory" {
  description = "Memory of one instance, such as 512Mi or 4Gi."
  type        = string
  default     = "1Gi"
}

variable "function_cpu" {
  description = "CPUs of one instance. With more than one call at a time, at least 1."
  type        = string
  default     = "1"
}

variable "function_concurrency" {
  description = "Calls that one instance serves at a time. With 1, each has the instance's memory to itself."
  type        = number
  default     = 1

  validation {
    condition     = var.function_concurrency >= 1 && var.function_concurrency <= 1000
    error_message = "Google Cloud allows 1 to 1000."
  }
}

variable "function_max_instances" {
  description = "Instances at most. Times the concurrency, this is how many calls can be served at once; further ones are refused, and made again by Dagster for a minute."
  type        = number
  default     = 10
}

variable "function_min_instances" {
  description = "Instances that are kept ready, and paid for, while there is nothing to do."
  type        = number
  default     = 0
}

variable "orchestrator_users" {
  description = "Who may act as Dagster's service account from their own machine, such as user:somebody@example.com."
  type        = set(string)
  default     = []

  validation {
    condition     = alltrue([for user in var.orchestrator_users : can(regex("^(user|group|serviceAccount):[^@ ]+@[^@ ]+$", user))])
    error_message = "Name each one as user:, group: or serviceAccount:, followed by its address."
  }
}
